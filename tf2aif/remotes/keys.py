"""Ed25519 keys: who signs what is pushed, and whose signature counts (RFC 8032).

A private key is a PEM file (PKCS #8) that its owner alone can read. A public key is one line for
the project's configuration: `ed25519:` and the 32 bytes in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Tf2aifError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "TF2AIF_SIGNING_KEY"
_PREFIX = "ed25519:"


class SigningKey:
    """A private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @cached_property
    def public(self) -> str:
        """The public key, as configurations have it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        raw = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _PREFIX + base64.b64encode(raw).decode()

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(data)


class Trusted:
    """The public keys whose signatures count.

    Raises Tf2aifError for what is no public key.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys = {key_id(key): _read_public(key) for key in dict.fromkeys(keys)}

    def holds(self, identity: str, signature: bytes, data: bytes) -> bool:
        """Whether the key of this id is trusted, and has signed these bytes."""
        from cryptography.exceptions import InvalidSignature

        known = self.keys.get(identity)
        if known is None:
            return False
        try:
            known.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def key_id(public: str) -> str:
    """A short name of a public key; it says which key to try, and proves nothing."""
    return hashlib.sha256(public.encode()).hexdigest()[:16]


def default_path(environ: Mapping[str, str] | None = None) -> Path:
    """`tf2aif/signing-key` in `$XDG_CONFIG_HOME`, else in `~/.config`."""
    env = os.environ if environ is None else environ
    base = Path(env.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path("~/.config").expanduser()) / "tf2aif/signing-key"


def find_signing_key(environ: Mapping[str, str] | None = None) -> SigningKey | None:
    """The key of `TF2AIF_SIGNING_KEY` (a path, or the PEM text itself), else of this user.

    None where the variable is not set and the user has no key. Raises Tf2aifError where the key
    cannot be read, or is of another kind.
    """
    env = os.environ if environ is None else environ
    said = env.get(VARIABLE, "")
    if said.startswith("-----BEGIN"):  # how CI systems hand on a secret
        return _read_private(said.encode(), f"${VARIABLE}")
    path = Path(said).expanduser() if said else default_path(env)
    try:
        data = path.read_bytes()
    except OSError as error:
        if not said and isinstance(error, FileNotFoundError):
            return None
        hint = f"{VARIABLE} is the path of a key of 'tf2aif cache keygen'" if said else ""
        raise Tf2aifError(
            f"the signing key cannot be read: {error.strerror}", at=str(path), hint=hint
        ) from error
    return _read_private(data, str(path))


def generate(path: Path) -> str:
    """Make a new private key in a file that must not exist; its public key.

    Raises Tf2aifError where it exists, or cannot be written.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
    except FileExistsError:
        raise Tf2aifError(
            "there is a key already", at=str(path), hint="name another file with -o"
        ) from None
    except OSError as error:
        raise Tf2aifError(f"the key cannot be written: {error.strerror}", at=str(path)) from error
    return SigningKey(private).public


def _read_private(data: bytes, at: str) -> SigningKey:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key("a private key", at) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise _no_key("an Ed25519 key", at)
    return SigningKey(private)


def _read_public(text: str) -> Any:
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        if not text.startswith(_PREFIX) or len(raw) != 32:
            raise ValueError(text)
        return Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error) as error:
        raise Tf2aifError(
            f"not a public key: '{text}'",
            at="tf2aif.yaml: cache.trusted",
            hint="write it as 'tf2aif cache keygen' prints it: ed25519:…",
        ) from error


def _no_key(what: str, at: str) -> Tf2aifError:
    return Tf2aifError(f"that is not {what}", at=at, hint="make one: tf2aif cache keygen")


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise Tf2aifError(
            "shared caches need the package 'cryptography', which is not installed",
            hint="pip install 'tf2aif[remote]'",
        ) from error
