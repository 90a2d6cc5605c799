"""Names of images in registries: `registry.example:5000/team/kws:cpu-int8@sha256:…`."""

from __future__ import annotations

import ipaddress
import re

from msgspec import Struct
from msgspec.structs import replace

from ..errors import Tf2aifError
from .documents import is_digest

DOCKER_HUB = "docker.io"
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Reference(Struct, frozen=True, kw_only=True):
    """A registry's host, a repository in it, and a tag or a digest."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a name as Docker's users write it. Raises Tf2aifError where it is none.

        >>> Reference.parse("debian").repository
        'library/debian'
        >>> str(Reference.parse("127.0.0.1:5000/kws:cpu-int8"))
        '127.0.0.1:5000/kws:cpu-int8'
        """
        name, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise _wrong(text, f"{digest!r} is no SHA-256 digest")
        host, repository = _split_host(name)
        repository, _, tag = repository.partition(":")
        if host == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        if not _REPOSITORY.fullmatch(repository):
            raise _wrong(
                text, f"{repository!r} is no repository: lower-case letters, digits, . _ -"
            )
        if tag and not _TAG.fullmatch(tag):
            raise _wrong(text, f"{tag!r} is no tag")
        return cls(host=host, repository=repository, tag=tag, digest=digest)

    def at(self, target: str) -> Reference:
        """The same repository, at another tag or digest."""
        if is_digest(target):
            return replace(self, tag="", digest=target)
        return replace(self, tag=target, digest="")

    @property
    def target(self) -> str:
        """What is asked for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine: then it may speak plain HTTP."""
        name = self.host.rpartition(":")[0] or self.host
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def _split_host(name: str) -> tuple[str, str]:
    """A first part with a dot or a port, or `localhost`, is a host."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return DOCKER_HUB, name


def _wrong(text: str, why: str) -> Tf2aifError:
    return Tf2aifError(
        f"not the name of an image: {why}", at=text, hint="write HOST/REPOSITORY:TAG"
    )
