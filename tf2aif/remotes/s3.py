"""A remote in a bucket of S3, or of what speaks its protocol.

Credentials, region and endpoint come from where the AWS tools have them (`AWS_ACCESS_KEY_ID`,
profiles, single sign-on, web identity, the machine's role; `AWS_ENDPOINT_URL` for other servers).
Nothing but the plain calls is used: no conditional writes, which some servers lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ..errors import Tf2aifError
from .remote import CHUNK, MAX_BUNDLE, Blob, Entry, RemoteFailed, Table, is_name

_CONNECTIONS = 32
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_REFUSED = frozenset({"AccessDenied", "403", "QuotaExceeded", "EntityTooLarge", "405", "413"})


class S3Remote:
    """One bucket, below one prefix."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises Tf2aifError for an address without a bucket, and where the client is missing."""
        parts = urlsplit(url)
        if not parts.netloc:
            raise Tf2aifError(
                "not the address of a shared cache", at=url, hint="write s3://BUCKET/PREFIX"
            )
        try:
            import botocore  # noqa: F401
        except ImportError as error:
            raise Tf2aifError(
                "shared caches in S3 need the package 'botocore', which is not installed",
                hint="pip install 'tf2aif[s3]'",
            ) from error
        self.url = url.rstrip("/")
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._timeout_s = timeout_s

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session

        settings = Config(
            connect_timeout=self._timeout_s,
            read_timeout=self._timeout_s,
            max_pool_connections=_CONNECTIONS,
            retries={"total_max_attempts": 2, "mode": "standard"},
            # Servers other than Amazon's need not know its newer checksums; ours is the name.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session = get_session()
        region = session.get_config_variable("region") or "us-east-1"
        try:
            return session.create_client("s3", config=settings, region_name=region)
        except (BotoCoreError, ValueError) as error:
            raise RemoteFailed(f"cannot speak S3: {error}", at=self.url) from error

    def get_action(self, name: str) -> bytes | None:
        """The entry of `ac/`."""
        with self._speaking("read"):
            try:
                answer = self._call("get_object", Key=self._key("ac", name))
            except RemoteFailed as error:
                if error.absent:
                    return None
                raise
            data: bytes = answer["Body"].read(MAX_BUNDLE + 1)
            return data

    def put_action(self, name: str, data: bytes, blobs: Sequence[Blob]) -> None:  # noqa: ARG002
        """Write an entry of `ac/`."""
        self._call("put_object", Key=self._key("ac", name), Body=data)

    @contextmanager
    def get_blob(self, blob: Blob, start: int) -> Iterator[Iterator[bytes]]:
        """The bytes from `start` on."""
        asked = {"Range": f"bytes={start}-"} if start else {}
        try:
            body = self._call("get_object", Key=self._key("cas", blob.sha256), **asked)["Body"]
        except RemoteFailed as error:
            if "InvalidRange" in str(error) or " 416" in str(error):  # nothing from there on
                yield iter(())
                return
            raise
        try:
            yield self._pieces(body)
        finally:
            body.close()

    def _pieces(self, body: Any) -> Iterator[bytes]:
        with self._speaking("read"):
            yield from body.iter_chunks(CHUNK)

    def has_blob(self, blob: Blob) -> bool:
        """Whether it is there, by name and size."""
        try:
            answer = self._call("head_object", Key=self._key("cas", blob.sha256))
        except RemoteFailed as error:
            if error.absent:
                return False
            raise
        return bool(answer["ContentLength"] == blob.size)

    def put_blob(self, blob: Blob, source: Path) -> None:
        """Write an entry of `cas/`."""
        with source.open("rb") as file:
            self._call("put_object", Key=self._key("cas", blob.sha256), Body=file)

    def entries(self) -> Iterator[Entry]:
        """All objects of both tables."""
        tables: tuple[Table, ...] = ("ac", "cas")
        for table in tables:
            with self._speaking("list"):
                pages = self._client.get_paginator("list_objects_v2")
                for page in pages.paginate(
                    Bucket=self._bucket, Prefix=f"{self._prefix}{table}/", PaginationConfig={}
                ):
                    for one in page.get("Contents", ()):
                        name = one["Key"].rpartition("/")[2]
                        if is_name(name):
                            when = one["LastModified"].timestamp()
                            yield Entry(table, name, one["Size"], when)

    def delete(self, entry: Entry) -> None:
        """Remove one."""
        self._call("delete_object", Key=self._key(entry.table, entry.name))

    def close(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            self._client.close()

    def _key(self, table: str, name: str) -> str:
        return f"{self._prefix}{table}/{name}"

    def _call(self, method: str, **fields: Any) -> Any:
        with self._speaking(method.partition("_")[0]):
            return getattr(self._client, method)(Bucket=self._bucket, **fields)

    @contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            yield
        except ClientError as error:
            self._refused(what, error)
        except (BotoCoreError, HTTPClientError, OSError, ValueError) as error:
            hint = "credentials are taken from where the AWS tools have them"
            raise RemoteFailed(
                f"cannot {what} in the bucket: {error}",
                at=self.url,
                hint=hint if "redentials" in str(error) else "",
            ) from error

    def _refused(self, what: str, error: Any) -> NoReturn:
        said = error.response.get("Error", {})
        code, status = str(said.get("Code", "")), error.response.get("ResponseMetadata", {})
        # A bucket that is not there is a wrong address, not an empty cache.
        absent = code in _ABSENT and code != "NoSuchBucket"
        raise RemoteFailed(
            f"cannot {what} in the bucket: {status.get('HTTPStatusCode', '')} {code} "
            f"{said.get('Message', '')}".rstrip(),
            at=self.url,
            refused=code in _REFUSED and what in ("put", "delete"),
            absent=absent,
        ) from error
