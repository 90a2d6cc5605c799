"""Reading back the JSON that choosing writes, with one clear message for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import Fault, FilesError

Shape = TypeVar("Shape", bound=msgspec.Struct)


def read_written(path: Path, shape: type[Shape], schema: int, what: str, hint: str) -> Shape:
    """The value in a file. Raises FilesError that says what is wrong, with the hint."""
    try:
        value: Any = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise FilesError([Fault(f"there is no {what}", str(path), hint)]) from None
    except OSError as error:
        raise FilesError([Fault(f"cannot be read: {error.strerror}", str(path))]) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FilesError([Fault(f"not JSON: {error}", str(path), hint)]) from error
    version = value.get("schema") if isinstance(value, dict) else None
    if version != schema:
        message = f"a {what} of schema {version}; this tf2aif reads schema {schema}"
        raise FilesError([Fault(message, str(path), hint)])
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise FilesError([Fault(f"not a {what}: {error}", str(path), hint)]) from error
