#!/bin/sh
# Brings a farm up over plain ssh, from the machine that has the authority's key.
#
#   sh farm.sh SCHEDULER-HOST WORKER-HOST ...
#
# Needed on each host: sudo without a password, Python 3.11 or newer with venv, and the two unit
# files beside this script. TF2AIF: what pip installs there, by default 'tf2aif[farm,remote]', with
# the extras of what the machine is to do. CACHE: the shared cache. Run it again to renew a host.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
KEYS=${KEYS:-$PWD/farm-keys}
TF2AIF=${TF2AIF:-tf2aif[farm,remote]}
CACHE=${CACHE:?name the shared cache: CACHE=https://cache.example/tf2aif}
SCHEDULER=${1:?usage: farm.sh SCHEDULER-HOST WORKER-HOST ...}
shift

install_on() { # HOST NAME UNIT
    [ -d "$KEYS/$2" ] || tf2aif farm keygen "$KEYS" "$2"
    ssh "$1" "sudo useradd --system --home-dir /var/cache/tf2aif tf2aif 2>/dev/null || true
        sudo install -d -o tf2aif -m 700 /etc/tf2aif/farm
        [ -d /opt/tf2aif ] || sudo python3 -m venv /opt/tf2aif
        sudo /opt/tf2aif/bin/pip install --quiet --upgrade '$TF2AIF'"
    tar -C "$KEYS/$2" -c ca.pem cert.pem key.pem | ssh "$1" \
        "sudo tar -C /etc/tf2aif/farm -x --no-same-owner && sudo chown -R tf2aif /etc/tf2aif/farm"
    ssh "$1" "sudo tee /etc/systemd/system/$3 >/dev/null" <"$HERE/$3"
}

start_on() { # HOST UNIT
    ssh "$1" "sudo systemctl daemon-reload && sudo systemctl enable $2 && sudo systemctl restart $2"
}

install_on "$SCHEDULER" scheduler tf2aif-scheduler.service
start_on "$SCHEDULER" tf2aif-scheduler.service

for host in "$@"; do
    install_on "$host" "$host" tf2aif-worker.service
    printf 'FARM=%s:8786\nTF2AIF_REMOTE=%s\nFURTHER=%s\n' "$SCHEDULER" "$CACHE" "${FURTHER:-}" |
        ssh "$host" "sudo tee /etc/tf2aif/worker.env >/dev/null"
    echo "the key that $host signs with, for 'cache.trusted' in tf2aif.yaml:"
    ssh "$host" "sudo test -f /etc/tf2aif/signing-key ||
        sudo /opt/tf2aif/bin/tf2aif cache keygen -o /etc/tf2aif/signing-key
        sudo chown tf2aif /etc/tf2aif/signing-key"
    start_on "$host" tf2aif-worker.service
done
tf2aif farm keygen "$KEYS" client 2>/dev/null || true
TF2AIF_FARM_TLS="$KEYS/client" tf2aif farm status "$SCHEDULER:8786"
