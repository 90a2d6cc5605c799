#!/usr/bin/env bash
# One run of CI: check, build, verify, push, and a report. The same on every CI system and at a desk.
#
# All that differs between them is in variables; what is not set is not done:
#
#   TF2AIF_REMOTE         the shared cache: oci://HOST/PATH, https://…, s3://…, or a folder
#   TF2AIF_REMOTE_WRITE   yes: what is made here is given to it
#   TF2AIF_SIGNING_KEY    the key that signs what is given: its path, or its text
#   VERIFY                variants or recipes to make a second time, without any cache
#   PUSH_TO               HOST/PATH that images are pushed to; without it no images are made
#   PUSH                  the variants or recipes whose images are pushed
#   REGISTRY_USER, REGISTRY_PASSWORD   for HOST, where nobody has signed in there
#   REPORT                the folder of the report, by default report/
set -uo pipefail

report=${REPORT:-report}
mkdir -p "$report"
failed=()

step() {  # NAME COMMAND...: run it, its output on the screen and in the report
    printf '\n== %s: %s\n' "$1" "${*:2}"
    "${@:2}" 2>&1 | tee "$report/$1.txt" || { failed+=("$1"); return 1; }
}

sign_in() {  # as `docker login` does, where there is no Docker
    local host=${PUSH_TO%%/*}
    DOCKER_CONFIG=$(mktemp -d) && export DOCKER_CONFIG && trap 'rm -rf "$DOCKER_CONFIG"' EXIT
    (umask 077 && printf '{"auths": {"%s": {"auth": "%s"}}}\n' "$host" \
        "$(printf '%s:%s' "$REGISTRY_USER" "$REGISTRY_PASSWORD" | base64 -w0)" \
        > "$DOCKER_CONFIG/config.json")
}

build=(tf2aif build -n auto)
[ -z "${TF2AIF_REMOTE:-}" ] || build+=(--remote "$TF2AIF_REMOTE")
[ -z "${PUSH_TO:-}" ] || export TF2AIF_IMAGES=yes
[ -z "${PUSH_TO:-}" ] || [ -z "${REGISTRY_USER:-}" ] || sign_in
read -r -a verify <<< "${VERIFY:-}"
read -r -a push <<< "${PUSH:-}"

# What fails ends the run, but for the report: it tells of the variants that were made.
if step check tf2aif check && step build "${build[@]}"; then
    [ ${#verify[@]} -eq 0 ] || step verify tf2aif verify "${verify[@]}"
    [ ${#failed[@]} -gt 0 ] || [ -z "${PUSH_TO:-}" ] || [ ${#push[@]} -eq 0 ] ||
        step push tf2aif push "${push[@]}" --to "$PUSH_TO"
fi
tf2aif list --json > "$report/variants.json" || failed+=("list")

[ ${#failed[@]} -eq 0 ] || printf '\nFAILED: %s\n' "${failed[@]}" >&2
exit $((${#failed[@]} > 0))
