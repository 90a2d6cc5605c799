"""Who a user is to a registry: Docker's configuration file and its credential helpers."""

from __future__ import annotations

import warnings
from typing import Any

from msgspec import Struct

from ..errors import Tf2aifError
from .reference import DOCKER_HUB


class Credentials(Struct, frozen=True, kw_only=True):
    """A name and a password, or a token that stands for both. Never shown."""

    user: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def find_credentials(host: str) -> Credentials | None:
    """What `docker login` stored for that registry; None where there is nothing.

    Raises Tf2aifError where the file is broken or a helper fails.
    """
    from docker import auth
    from docker.errors import DockerException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a helper is not there is an error of ours
            config = auth.load_config()
            found: dict[str, Any] | None = config.resolve_authconfig(
                auth.INDEX_NAME if host == DOCKER_HUB else host
            )
    except (DockerException, ValueError) as error:
        raise Tf2aifError(
            f"no credentials could be read for {host}: {error}",
            at="Docker's configuration file",
            hint=f"docker login {host}",
        ) from error
    if not found:
        return None
    return Credentials(
        user=found.get("Username") or found.get("username") or "",
        password=found.get("Password") or found.get("password") or "",
        identity_token=found.get("IdentityToken") or found.get("identitytoken") or "",
    )
