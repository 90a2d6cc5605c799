"""The codec: what is encoded comes back, and nothing that is sent can do worse than be refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf2aif.serve.codec import (
    Request,
    Response,
    Wanted,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from tf2aif.serve.datatypes import NUMPY, datatype_of
from tf2aif.serve.failures import Kind, RequestFailed

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NAMES = st.text(min_size=1, max_size=8)


def tensors(text_only: bool = False, finite: bool = False) -> st.SearchStrategy[Any]:
    """Arrays of every datatype. JSON holds UTF-8 and finite numbers only."""

    def of(datatype: str) -> st.SearchStrategy[Any]:
        if datatype == "BYTES":
            element = st.text(max_size=5).map(str.encode) if text_only else st.binary(max_size=5)
            return hnp.arrays(object, SHAPES, elements=element)
        options = {"allow_nan": not finite, "allow_infinity": not finite}
        elements = hnp.from_dtype(NUMPY[datatype], **options if "FP" in datatype else {})
        return hnp.arrays(NUMPY[datatype], SHAPES, elements=elements)

    return st.sampled_from(sorted(NUMPY)).flatmap(of)


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].shape == right[name].shape
        if left[name].dtype == object:
            assert left[name].tolist() == right[name].tolist()
        else:  # to the bit: NaN's payload and the sign of zero included
            assert left[name].tobytes() == right[name].tobytes()


@given(st.dictionaries(NAMES, tensors(), max_size=3), st.text(max_size=5), st.booleans())
def test_binary_requests_come_back(inputs: dict[str, Any], name: str, binary: bool) -> None:
    request = Request(inputs=inputs, id=name, binary=binary, outputs=(Wanted("y", not binary),))
    decoded = decode_request(*encode_request(request))
    same(decoded.inputs, inputs)
    assert (decoded.id, decoded.binary, decoded.outputs) == (name, binary, request.outputs)


@given(st.dictionaries(NAMES, tensors(text_only=True, finite=True), max_size=3))
def test_json_requests_come_back(inputs: dict[str, Any]) -> None:
    body, length = encode_request(Request(inputs=inputs), binary=False)
    assert length is None
    same(decode_request(body).inputs, inputs)


@given(st.dictionaries(NAMES, tensors(text_only=True, finite=True), max_size=3), st.data())
def test_responses_come_back_in_the_order_asked(outputs: dict[str, Any], data: Any) -> None:
    picked = data.draw(
        st.lists(st.sampled_from(sorted(outputs)), unique=True) if outputs else st.just([])
    )
    wanted = [Wanted(name, data.draw(st.booleans())) for name in picked]
    response = Response(model_name="m", model_version="v", id="7", outputs=outputs)
    decoded = decode_response(*encode_response(response, wanted))
    same(decoded.outputs, {name: outputs[name] for name in picked} if picked else outputs)
    assert (decoded.model_name, decoded.model_version, decoded.id) == ("m", "v", "7")


@given(tensors(text_only=True, finite=True))
def test_nested_json_is_read_as_its_shape_says(array: Any) -> None:
    if array.dtype == object:
        values = (
            np.array([each.decode() for each in array.flat], object).reshape(array.shape).tolist()
        )
    else:
        values = array.tolist()
    if array.ndim == 0 or 0 in array.shape[:-1]:
        return  # a scalar is no list; an empty axis hides the ones below it
    tensor = {
        "name": "x",
        "shape": array.shape,
        "datatype": datatype_of(array.dtype),
        "data": values,
    }
    same(decode_request(json.dumps({"inputs": [tensor]}).encode()).inputs, {"x": array})


def read_or_refuse(body: bytes, length: int | None) -> dict[str, Any]:
    """The tensors, or none where the message is refused as it should be."""
    try:
        return decode_request(body, length).inputs
    except RequestFailed as failure:
        if failure.kind is not Kind.INVALID or len(failure.message) > 2000:
            raise
        return {}


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None) -> None:
    read_or_refuse(body, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {
        "name": st.just("x") | JSON,
        "shape": st.lists(st.integers(-1, 2**70), max_size=4) | JSON,
        "datatype": st.sampled_from(sorted(NUMPY)) | JSON,
    },
    optional={
        "data": JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region"]),
            st.integers(-1, 2**70) | JSON,
        ),
    },
)


@given(st.lists(FIELDS, max_size=2), st.binary(max_size=40), JSON, JSON)
def test_any_message_is_read_or_refused(
    inputs: Any, tail: bytes, parameters: Any, outputs: Any
) -> None:
    message = {"inputs": inputs, "parameters": parameters, "outputs": outputs}
    for whole in ({"inputs": inputs}, message):
        head = json.dumps(whole).encode()
        for array in read_or_refuse(head + tail, len(head)).values():
            assert array.dtype in NUMPY.values()


def tensor(**changes: Any) -> bytes:
    whole = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
    return json.dumps({"inputs": [whole | changes]}).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "0 bytes"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"[" * 10**6, "does not fit"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 10**6,
            "nested",
        ),
        (b'{"inputs": [{"name": "\xff"}]}', "utf-8"),
        (tensor(datatype="FP31"), "unknown datatype 'FP31'"),
        (tensor(datatype="BF16"), "unknown datatype 'BF16'"),
        (tensor(shape=[3]), "the shape is [3], the data has [2]"),
        (tensor(shape=[-2]), ">= 0"),
        (tensor(shape=[2**64]), "the shape"),
        (tensor(shape=[2**62, 2**62, 0], data=[]), "no tensor has the shape"),
        (tensor(shape=[1] * 33), "length <= 32"),
        (tensor(data="12"), "flat list"),
        (tensor(shape=[2, 2], data=[[1, 2], [3]]), "not all of one length"),
        (tensor(shape=[2, 2], datatype="BYTES", data=[["a", "b"], ["c"]]), "not all of one length"),
        (tensor(data=[1, "2"]), "Expected `float`, got `str`"),
        (tensor(data=[1, True]), "Expected `float`, got `bool`"),
        (tensor(data=[1, None]), "got `null`"),
        (tensor(data=[1, float("nan")]), "malformed"),
        (tensor(data=[1, 1e39]), "does not fit FP32"),
        (tensor(data=[1, 10**400]), "FP32"),
        (tensor(datatype="INT8", data=[1, 300]), "does not fit INT8"),
        (tensor(datatype="UINT8", data=[1, -1]), "does not fit UINT8"),
        (tensor(datatype="INT32", data=[1, 1.5]), "Expected `int`, got `float`"),
        (tensor(datatype="BOOL", data=[1, 0]), "Expected `bool`"),
        (tensor(parameters={"binary_data_size": 8}), "both 'data'"),
        (tensor(parameters={"shared_memory_region": "r"}), "shared memory"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}', "neither 'data'"),
        (b'{"inputs": [], "parameters": {"timeout": -1}}', "microseconds"),
        (b'{"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}', "asked for twice"),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', "true or false"),
    ],
)
def test_faults_say_what_is_wrong(body: bytes, words: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        decode_request(body)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("shape", "datatype", "size", "raw", "words"),
    [
        ([2], "FP32", 4, b"1234", "takes 8 bytes, 4 were sent"),
        ([2], "FP32", 8, b"1234", "4 bytes of the body are left"),
        ([1], "FP32", 4, b"12345", "1 bytes follow"),
        ([1], "FP32", True, b"1234", "'binary_data_size' is True"),
        ([2], "BOOL", 2, b"\x00\x02", "0 or 1"),
        ([1], "BYTES", 4, b"\x01\x00\x00\x00", "runs past"),
        ([1], "BYTES", 3, b"\x01\x00\x00", "runs past"),
        ([2], "BYTES", 4, b"\x00\x00\x00\x00", "takes 2 elements, 1 were sent"),
        ([10**9, 10**9], "FP64", 0, b"", "takes 8000000000000000000 bytes"),
    ],
)
def test_faults_of_binary_tensors(
    shape: list[int], datatype: str, size: int, raw: bytes, words: str
) -> None:
    parameters = {"binary_data_size": size}
    whole = {"name": "x", "shape": shape, "datatype": datatype, "parameters": parameters}
    head = json.dumps({"inputs": [whole]}).encode()
    with pytest.raises(RequestFailed, match=r"input 'x'|bytes follow") as caught:
        decode_request(head + raw, len(head))
    assert words in caught.value.message


def test_values_that_json_cannot_hold_are_refused_and_not_changed() -> None:
    for array in (np.array([np.nan], np.float32), np.array([b"\xff"], object)):
        with pytest.raises(RequestFailed, match="binary data can"):
            encode_response(Response(model_name="m", outputs={"y": array}))
        assert encode_response(Response(model_name="m", outputs={"y": array}), binary=True)[1]


def test_integers_are_exact_at_their_ends() -> None:
    for name, dtype in NUMPY.items():
        if dtype.kind in "iu":
            ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
            body, _ = encode_request(Request(inputs={"x": ends}), binary=False)
            assert decode_request(body).inputs["x"].tolist() == ends.tolist(), name


def test_a_dtype_without_a_datatype() -> None:
    with pytest.raises(ValueError, match="complex64"):
        datatype_of("complex64")
