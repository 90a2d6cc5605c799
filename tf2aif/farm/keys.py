"""The certificates of a farm: one authority of its own, and what it signs for each machine.

Whoever has a certificate of this authority may submit steps and run them, nobody else: both sides
of each connection show theirs (mutual TLS). Source: RFC 5280.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Tf2aifError

if TYPE_CHECKING:
    from cryptography import x509

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca-key.pem"
NAMES = ("scheduler", "worker", "client")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CA_DAYS = 3650


def make_keys(folder: Path, names: Iterable[str] = NAMES, *, days: int = 365) -> tuple[Path, ...]:
    """A certificate for each name, in a folder of that name below `folder`; those folders.

    The authority is made where it is not there yet; its key stays in `folder`, and goes to no
    machine. Raises Tf2aifError where a name has a certificate already, or nothing can be written.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if not _NAME.fullmatch(name):
            raise Tf2aifError(f"'{name}' is no name of a machine", hint="letters, digits, . _ -")
        if (folder / name).exists():
            raise Tf2aifError(
                "there is a certificate already", at=str(folder / name), hint="choose another name"
            )
    try:
        authority, key = _authority(folder)
        for name in wanted:
            _issue(folder / name, name, authority, key, days)
    except OSError as error:
        raise Tf2aifError(f"cannot be written: {error.strerror}", at=str(folder)) from error
    return tuple(folder / name for name in wanted)


def _authority(folder: Path) -> tuple[x509.Certificate, Any]:
    """The farm's own, as it stands in the folder, or a new one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    paths = (folder / AUTHORITY, folder / AUTHORITY_KEY)
    if not any(path.exists() for path in paths):
        return _new_authority(folder)
    try:
        certificate = x509.load_pem_x509_certificate(paths[0].read_bytes())
        return certificate, load_pem_private_key(paths[1].read_bytes(), None)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise Tf2aifError(f"not a farm's authority: {error}", at=str(folder)) from error


def _new_authority(folder: Path) -> tuple[x509.Certificate, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("tf2aif farm")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = _sign(
        name, name, key.public_key(), key, _CA_DAYS,
        [(x509.BasicConstraints(ca=True, path_length=0), True), (usage, True)],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(folder / AUTHORITY_KEY, _pem_of_key(key), 0o600)
    _write(folder / AUTHORITY, _pem_of(certificate), 0o644)
    return certificate, key


def _issue(folder: Path, name: str, authority: x509.Certificate, key: Any, days: int) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use

    own = ec.generate_private_key(ec.SECP256R1())
    uses = x509.ExtendedKeyUsage([Use.SERVER_AUTH, Use.CLIENT_AUTH])
    certificate = _sign(
        _name(name), authority.subject, own.public_key(), key, days,
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (uses, False),
            (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
        ],
    )  # fmt: skip
    folder.mkdir(mode=0o700)
    _write(folder / "key.pem", _pem_of_key(own), 0o600)
    _write(folder / "cert.pem", _pem_of(certificate), 0o644)
    _write(folder / "ca.pem", _pem_of(authority), 0o644)


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    public: Any,
    key: Any,
    days: int,
    extensions: list[tuple[Any, bool]],
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())


def _usage(**wanted: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem_of(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _pem_of_key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def _write(path: Path, data: bytes, mode: int) -> None:
    """A new file; what is there is never written over."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
