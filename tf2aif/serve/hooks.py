"""Hooks: a user's own functions between a raw payload and the model.

A hooks file is one Python file with any of these functions, all optional:

    def decode(body: bytes, content_type: str) -> dict[str, Array]: ...
    def preprocess(inputs: dict[str, Array]) -> dict[str, Array]: ...
    def postprocess(outputs: dict[str, Array]) -> Any: ...
    def encode(result: Any) -> tuple[bytes, str]: ...
    def example() -> tuple[bytes, str]: ...

`decode` makes tensors of a payload, one or more samples along axis 0; `preprocess` makes the
model's inputs of them, `postprocess` what the user wants of the model's outputs, `encode` the bytes
to answer with and their content type. `example` gives a payload to try the others with.
A `ValueError` in `decode` or `preprocess` is the sender's fault (400); anything else is ours (500).

`tf2aif.serve.images` and `tf2aif.serve.labels` hold ready ones.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from ..engines import Array
from ..errors import Tf2aifError

Inputs = dict[str, Array]
Decode = Callable[[bytes, str], Inputs]
Preprocess = Callable[[Inputs], Inputs]
Postprocess = Callable[[dict[str, Array]], Any]
Encode = Callable[[Any], tuple[bytes, str]]
Example = Callable[[], tuple[bytes, str]]

ARITY = {"decode": 2, "preprocess": 1, "postprocess": 1, "encode": 1, "example": 0}
"""Hook -> how many arguments it is called with."""


class HookFailed(Exception):
    """A hook raised or gave what it must not. `of_sender`: the payload is at fault."""

    def __init__(self, message: str, *, of_sender: bool = False) -> None:
        super().__init__(message)
        self.of_sender = of_sender


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """The functions that a hooks file defines; what it leaves out is None."""

    decode: Decode | None = None
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    encode: Encode | None = None
    example: Example | None = None

    @property
    def any(self) -> bool:
        """Whether there is user code on the path of a request."""
        return any((self.decode, self.preprocess, self.postprocess, self.encode))

    def payload(self) -> tuple[bytes, str]:
        """The file's own example of a payload and its content type. Raises HookFailed."""
        if self.example is None:
            raise HookFailed("there is no hook 'example'")
        return _payload("example", _call("example", self.example))

    def inputs_of(self, body: bytes, content_type: str, names: tuple[str, ...]) -> Inputs:
        """The model's inputs of a payload: `decode`, then `preprocess`. Raises HookFailed."""
        if self.decode is None:
            decoded = decode_default(body, content_type, names)
        else:
            decoded = _tensors("decode", _call("decode", self.decode, body, content_type))
        return self.prepare(decoded)

    def prepare(self, inputs: Inputs) -> Inputs:
        """`preprocess`, where there is one: what the check step runs on its samples."""
        if self.preprocess is None:
            return inputs
        return _tensors("preprocess", _call("preprocess", self.preprocess, inputs))

    def result_of(self, outputs: dict[str, Array]) -> Any:
        """`postprocess`, where there is one. Raises HookFailed."""
        if self.postprocess is None:
            return outputs
        return _call("postprocess", self.postprocess, outputs)

    def answer_of(self, outputs: dict[str, Array]) -> tuple[bytes, str]:
        """The answer's bytes and content type: `postprocess`, then `encode`. Raises HookFailed."""
        result = self.result_of(outputs)
        if self.encode is None:
            return encode_default(result)
        return _payload("encode", _call("encode", self.encode, result))


def load_hooks(path: Path) -> Hooks:
    """The hooks of a file; modules beside it can be imported by it.

    Raises Tf2aifError where the file cannot be read or run, or a hook is not a function of the
    right number of arguments.
    """
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        raise Tf2aifError(f"cannot read the hooks file: {error.strerror}", at=str(path)) from error
    except (SyntaxError, ValueError) as error:
        raise Tf2aifError(f"the hooks file is not Python: {error}", at=str(path)) from error
    module = ModuleType("tf2aif_hooks")
    module.__file__ = str(path)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # user code: it may raise anything
        raise Tf2aifError(f"the hooks file raised {_words(error)}", at=str(path)) from error
    return hooks_from(vars(module), str(path))


def hooks_from(namespace: Mapping[str, Any], at: str) -> Hooks:
    """The hooks among a module's names. Raises Tf2aifError where one has the wrong shape."""
    found = {name: namespace[name] for name in ARITY if name in namespace}
    for name, function in found.items():
        if not callable(function):
            raise Tf2aifError(f"hook '{name}' is not a function", at=f"{at}: {name}")
        if not _takes(function, ARITY[name]):
            raise Tf2aifError(
                f"hook '{name}' is called with {ARITY[name]} arguments, and cannot be",
                at=f"{at}: {name}",
                hint="see the five functions in tf2aif/serve/hooks.py",
            )
    return Hooks(**found)


def decode_default(body: bytes, content_type: str, names: tuple[str, ...]) -> Inputs:
    """A payload without a `decode` hook: `application/json` or `application/x-npy`.

    JSON is a nested list (the only input) or an object of them by name. Numbers become float32
    or int64: `preprocess`, or the door's own dtype, makes of them what the model takes.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-npy":
        return {_only(names): _read_npy(body)}
    if kind not in ("application/json", ""):
        raise HookFailed(
            f"content type '{kind}' is not read: send application/json or application/x-npy",
            of_sender=True,
        )
    try:
        value = msgspec.json.decode(body)
        if isinstance(value, dict):
            return {name: np.asarray(each) for name, each in value.items()}
        return {_only(names): np.asarray(value)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HookFailed(f"the payload is not JSON: {error}", of_sender=True) from error
    except ValueError as error:  # lists of unlike lengths
        raise HookFailed(f"the payload is not a tensor: {error}", of_sender=True) from error


def encode_default(result: Any) -> tuple[bytes, str]:
    """A result without an `encode` hook, as JSON. Raises HookFailed where JSON cannot hold it."""
    try:
        return msgspec.json.encode(result, enc_hook=_plain), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise HookFailed(f"the result cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError("it has NaN or infinity")
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # user code: whatever it raises fails one request only
        of_sender = name in ("decode", "preprocess") and isinstance(error, ValueError)
        raise HookFailed(f"hook '{name}' raised {_words(error)}", of_sender=of_sender) from error


def _tensors(name: str, value: Any) -> Inputs:
    if not isinstance(value, dict) or not value:
        raise HookFailed(f"hook '{name}' gives arrays by input name, not {_kind(value)}")
    for key, array in value.items():
        if not isinstance(key, str) or not isinstance(array, np.ndarray):
            raise HookFailed(f"hook '{name}' gives arrays by input name; {key!r} is {_kind(array)}")
    return value


def _payload(name: str, value: Any) -> tuple[bytes, str]:
    match value:
        # The content type becomes a header line: nothing may break out of it.
        case (bytes() | bytearray() | memoryview() as body, str(content_type)) if (
            content_type.isascii() and content_type.isprintable()
        ):
            return bytes(body), content_type
    raise HookFailed(f"hook '{name}' gives (bytes, content type), not {_kind(value)}")


def _only(names: tuple[str, ...]) -> str:
    if len(names) != 1:
        raise HookFailed(
            f"send an object with the inputs by name: {', '.join(names)}", of_sender=True
        )
    return names[0]


def _read_npy(body: bytes) -> Array:
    try:
        array: Array = np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError) as error:
        raise HookFailed(f"the payload is not a .npy file: {error}", of_sender=True) from error
    return array


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin that tells nothing of its arguments
        return True
    return True


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _words(error: BaseException) -> str:
    """An exception in one line, with the user's own line: 'KeyError: 'x' (hooks.py:12)'."""
    last = None
    frame = error.__traceback__
    while frame is not None:
        last, frame = frame, frame.tb_next
    where = f" ({Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"[:500]
