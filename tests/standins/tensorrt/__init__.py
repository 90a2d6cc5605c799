"""A stand-in for TensorRT, for tests on machines with no GPU. It is not TensorRT.

It has the classes, methods and flags that tf2aif uses, under the names that the real bindings of 10
and 11 have (a test holds them against each other), and behaves as their documentation says: a
strongly typed network, no engine for free axes without a profile, an engine that only its own
version and GPU load, weights that are stripped and put back. Messages are the real parser's. An
"engine" is the ONNX model in a wrapper; onnxruntime runs it on the memory of the stand-in for CUDA.

`CALLS` is every name that was used, as `Class.name`.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import os
from typing import Any

__version__ = os.environ.get("STANDIN_TENSORRT_VERSION", "10.16.1.11")
CALLS: set[str] = set()

_REFUSED = {"Det", "Unique", "StringNormalizer"}
_MAGIC = b"stand-in engine\n"


class _Recorded:
    """Notes which of its names are used."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            CALLS.add(f"{type(self).__name__}.{name}")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            CALLS.add(f"{type(self).__name__}.{name}")
        super().__setattr__(name, value)


class _RecordedEnum(enum.EnumMeta):
    def __getattribute__(cls, name: str) -> Any:
        if name.isupper() and not name.startswith("_"):
            CALLS.add(f"{type.__getattribute__(cls, '__name__')}.{name}")
        return super().__getattribute__(name)


class _Flags(enum.IntEnum, metaclass=_RecordedEnum):
    pass


class NetworkDefinitionCreationFlag(_Flags):
    STRONGLY_TYPED = 1


class BuilderFlag(_Flags):
    REFIT = 2
    TF32 = 7
    VERSION_COMPATIBLE = 11
    STRIP_PLAN = 17
    REFIT_IDENTICAL = 18


class MemoryPoolType(_Flags):
    WORKSPACE = 0


class ProfilingVerbosity(_Flags):
    LAYER_NAMES_ONLY = 0
    DETAILED = 2


class HardwareCompatibilityLevel(_Flags):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class LayerInformationFormat(_Flags):
    ONELINE = 0
    JSON = 1


class DataType(_Flags):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    INT64 = 8


_OF_ONNX = {1: DataType.FLOAT, 10: DataType.HALF, 3: DataType.INT8, 6: DataType.INT32}
_OF_ONNX |= {9: DataType.BOOL, 7: DataType.INT64}


def nptype(dtype: DataType) -> Any:
    import numpy as np

    names = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}
    return np.dtype(names.get(dtype.name, dtype.name.lower())).type


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, severity: ILogger.Severity = ILogger.WARNING) -> None:
        self._least = severity

    def log(self, severity: ILogger.Severity, message: str) -> None:
        if severity <= self._least:
            print(message)


def _gpu() -> dict[str, Any]:
    """What engines hold for: the stand-in GPU, as its driver tells it."""
    from tf2aif.engines.cuda import Cuda

    cuda = Cuda()
    told = {"gpu": cuda.name(), "capability": cuda.compute_capability()}
    cuda.close()
    return told


class ITensor(_Recorded):
    def __init__(self, info: Any) -> None:
        tensor = info.type.tensor_type
        self.name = info.name
        self.dtype = _OF_ONNX[tensor.elem_type]
        self.shape = tuple(dim.dim_value or -1 for dim in tensor.shape.dim)
        self.is_shape_tensor = False


class INetworkDefinition(_Recorded):
    def __init__(self) -> None:
        self._model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._model.graph.input[index])

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)


class ParserError(_Recorded):
    def __init__(self, node: Any, words: str) -> None:
        self._node, self._words = node, words

    def desc(self) -> str:
        return self._words

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""


class OnnxParser(_Recorded):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    def parse(self, model: bytes) -> bool:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            parsed = onnx.load_model_from_string(model)
        except DecodeError:
            self._errors.append(ParserError(None, "Failed to parse the ONNX model"))
            return False
        for node in parsed.graph.node:
            if node.op_type in _REFUSED:
                self._errors.append(ParserError(node, "false"))
        self._network._model = parsed
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile(_Recorded):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self._shapes[name] = [tuple(low), tuple(best), tuple(high)]


class ITimingCache(_Recorded):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytearray:
        return bytearray(self._content)


class IBuilderConfig(_Recorded):
    def __init__(self) -> None:
        self._flags = {BuilderFlag["TF32"]}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self._pools: dict[int, int] = {}
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity["LAYER_NAMES_ONLY"]
        self.hardware_compatibility_level = HardwareCompatibilityLevel["NONE"]

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self._pools[pool] = size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache(bytes(content))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        mine = cache._content == b"" or json.loads(cache._content)["gpu"] == _gpu()
        self._cache = cache if mine or ignore_mismatch else None
        return self._cache is not None

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder(_Recorded):
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        if flags != 1 << NetworkDefinitionCreationFlag["STRONGLY_TYPED"]:
            raise ValueError("the stand-in makes strongly typed networks only")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytearray | None:
        model = network._model
        free = any(-1 in ITensor(info).shape for info in model.graph.input)
        if free and not config._profiles:
            words = "Network has dynamic or shape inputs, but no optimization profile"
            self._logger.log(ILogger.ERROR, f"{words} has been defined.")
            return None
        stripped = BuilderFlag["STRIP_PLAN"] in config._flags
        shapes = [profile._shapes for profile in config._profiles]
        made = {
            "version": __version__,
            "measured": self._measure(config, model),
            "flags": sorted(flag.name for flag in config._flags),
            "level": config.builder_optimization_level,
            "compatibility": config.hardware_compatibility_level.name,
            "detailed": config.profiling_verbosity == ProfilingVerbosity["DETAILED"],
            "profiles": shapes or [_fixed(model)],
            "model": base64.b64encode(_stripped(model) if stripped else _bytes(model)).decode(),
            **_gpu(),
        }
        return bytearray(_MAGIC + json.dumps(made).encode())

    def _measure(self, config: IBuilderConfig, model: Any) -> str:
        """What the times of kernels decide: by chance, unless the cache has these layers."""
        layers = ",".join(node.op_type for node in model.graph.node)
        known = json.loads(config._cache._content or b"{}") if config._cache else {}
        found = known.get(layers) or os.urandom(8).hex()
        if config._cache:
            known |= {"gpu": _gpu(), layers: found}
            config._cache._content = json.dumps(known, sort_keys=True).encode()
        return str(found)


def _bytes(model: Any) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _stripped(model: Any) -> bytes:
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    return _bytes(bare)


def _fixed(model: Any) -> dict[str, list[tuple[int, ...]]]:
    return {info.name: [ITensor(info).shape] * 3 for info in model.graph.input}


class Runtime(_Recorded):
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if not plan.startswith(_MAGIC):
            words = "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed."
            return self._refuse(words)
        try:
            made = json.loads(plan[len(_MAGIC) :])
        except ValueError:
            return self._refuse("Size specified in header does not match archive size")
        if made["version"] != __version__ and "VERSION_COMPATIBLE" not in made["flags"]:
            return self._refuse("Serialization assertion stdVersionRead == serializationVersion")
        if "VERSION_COMPATIBLE" in made["flags"] and not self.engine_host_code_allowed:
            return self._refuse("The engine has host code, which is not allowed")
        return ICudaEngine(made)

    def _refuse(self, words: str) -> None:
        self._logger.log(ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {words}")


class ICudaEngine(_Recorded):
    def __init__(self, made: dict[str, Any]) -> None:
        import onnx

        self._made = made
        self._model = onnx.load_model_from_string(base64.b64decode(made["model"]))
        graph = self._model.graph
        self._tensors = {info.name: ITensor(info) for info in (*graph.input, *graph.output)}
        self._inputs = [info.name for info in graph.input]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._made["profiles"])

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name].dtype

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._made["profiles"][profile][name]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class EngineInspector(_Recorded):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        layers = [{"Name": node.name} for node in self._engine._model.graph.node]
        return json.dumps({"Layers": layers, "Bindings": list(self._engine._tensors)})


class Refitter(_Recorded):
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine = engine
        self._new: Any = None

    def refit_cuda_engine(self) -> bool:
        self._engine._model = self._new
        return self._new is not None


class OnnxParserRefitter(_Recorded):
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter, self._logger = refitter, logger

    def refit_from_file(self, path: str) -> bool:
        import onnx

        new, old = onnx.load(path), self._refitter._engine._model
        names = [[(t.name, list(t.dims)) for t in m.graph.initializer] for m in (new, old)]
        if names[0] != names[1]:
            self._logger.log(ILogger.ERROR, "the weights are not those of the engine")
            return False
        self._refitter._new = new
        return True


class IExecutionContext(_Recorded):
    def __init__(self, engine: ICudaEngine) -> None:
        import onnxruntime

        self._engine, self._profile = engine, 0
        self._session = onnxruntime.InferenceSession(
            _bytes(engine._model), providers=["CPUExecutionProvider"]
        )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._kept: list[Any] = []

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return bool(stream) and profile < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name] if name in self._engine._inputs else self._made()[name].shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        from tf2aif.engines import cuda

        driver = ctypes.CDLL(cuda.LIBRARY)
        if driver.standin_capturing() and driver.standin_refuses_capture():
            return False
        shapes = dict(self._shapes)  # a captured run keeps the shapes that it was captured with

        def run() -> None:
            feeds = {name: self._memory(name, shape) for name, shape in shapes.items()}
            for name, array in self._made(feeds).items():
                self._memory(name, array.shape)[...] = array

        callback = ctypes.CFUNCTYPE(None)(run)
        self._kept.append(callback)
        return stream != 0 and driver.standin_run(callback) == 0

    def _made(self, feeds: dict[str, Any] | None = None) -> dict[str, Any]:
        import numpy as np

        dtypes = {name: nptype(self._engine._tensors[name].dtype) for name in self._shapes}
        given = feeds or {name: np.zeros(s, dtypes[name]) for name, s in self._shapes.items()}
        names = [each.name for each in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, given), strict=True))

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        import numpy as np

        dtype = np.dtype(nptype(self._engine._tensors[name].dtype))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)
