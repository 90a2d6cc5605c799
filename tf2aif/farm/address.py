"""Where a farm's scheduler listens, and with which certificates one speaks to it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Tf2aifError

PORT = 8786
VARIABLE = "TF2AIF_FARM_TLS"
LOCAL = "local"
FILES = ("ca.pem", "cert.pem", "key.pem")
_KEYGEN = "make certificates: tf2aif farm keygen DIR; then name this machine's with --tls"


class Address(NamedTuple):
    """A scheduler, and the folder with our certificate; without one, all is in the clear."""

    host: str
    port: int
    tls: Path | None

    @property
    def url(self) -> str:
        """As dask writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls' if self.tls else 'tcp'}://{host}:{self.port}"


def parse(text: str, tls: str | None = None, *, port: int = PORT) -> Address:
    """An address as people write it: `HOST`, `HOST:PORT`, `tls://HOST:PORT`, `tcp://HOST:PORT`.

    `tls` names the folder of the certificate; without it `$TF2AIF_FARM_TLS` does, or this user's
    own `~/.config/tf2aif/farm`. Raises Tf2aifError for what is no address, for a folder without
    certificates, and for a machine other than this one without any: nobody could say who it is.
    """
    scheme, host, number = _split(text, port)
    folder = None if scheme == "tcp" else certificates(tls)
    if folder is None and scheme == "tls":
        raise Tf2aifError("there is no certificate for this farm", at=text, hint=_KEYGEN)
    if folder is None and not is_loopback(host):
        raise Tf2aifError(
            "without certificates a farm is on 127.0.0.1 only: whoever reaches its port could "
            "use it",
            at=text,
            hint=_KEYGEN,
        )
    return Address(host, number, folder)


def certificates(chosen: str | None, environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of this machine's certificate; None where none was named and the user has none.

    Raises Tf2aifError where a file of it is lacking.
    """
    env = os.environ if environ is None else environ
    said = chosen or env.get(VARIABLE, "")
    folder = Path(said).expanduser().absolute() if said else _own(env)
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking and not said and len(lacking) == len(FILES):
        return None
    if lacking:
        raise Tf2aifError(f"there is no {', '.join(lacking)}", at=str(folder), hint=_KEYGEN)
    return folder


def security(tls: Path | None) -> Any:
    """Both sides show a certificate that the farm's own authority has signed; else no connection.

    Raises Tf2aifError where `distributed` is not installed, or the files are no certificate.
    """
    need_distributed()
    if tls is None:
        return None
    import ssl

    import distributed

    make: Callable[..., Any] = distributed.Security
    cert, key = str(tls / "cert.pem"), str(tls / "key.pem")
    found = make(
        require_encryption=True,
        tls_ca_file=str(tls / "ca.pem"),
        tls_client_cert=cert,
        tls_client_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
    )
    try:
        found.get_connection_args("client")
    except (ssl.SSLError, OSError) as error:
        raise Tf2aifError(f"not a certificate and its key: {error}", at=str(tls)) from error
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def need_distributed() -> None:
    """Raises Tf2aifError where dask.distributed is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise Tf2aifError(
            "a farm needs the package 'distributed', which is not installed",
            hint="pip install 'tf2aif[farm]'",
        ) from error


def _own(env: Mapping[str, str]) -> Path:
    base = Path(env.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path("~/.config").expanduser()) / "tf2aif/farm"


def _split(text: str, port: int) -> tuple[str, str, int]:
    scheme, found, rest = text.strip().partition("://")
    if not found:
        scheme, rest = "", text.strip()
    host, _, number = rest.rpartition(":") if _has_port(rest) else (rest, "", str(port))
    host = host.removeprefix("[").removesuffix("]")
    wrong = not host or "/" in host or "@" in host or not number.isdigit()
    if scheme not in ("", "tcp", "tls") or wrong or int(number) > 65535:
        raise Tf2aifError(
            "not the address of a farm", at=repr(text), hint="write HOST, HOST:PORT or 'local'"
        )
    return scheme, host, int(number)


def _has_port(rest: str) -> bool:
    """`::1` has none, `[::1]:80` has one."""
    return ":" in rest and (rest.count(":") == 1 or "]:" in rest)
