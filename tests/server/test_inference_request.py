"""Heads and tensors of inference requests: what is understood, and what is refused and why."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadInference, ImageTooLarge, ServeError
from server.inference_framing import packed
from server.inference_request import MOST_JSON_VALUES, Inference, known_as, parse

MOST = 4


def read(document: Any, tail: bytes = b"") -> Inference:
    """Parse a request whose head is this."""
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse(memoryview(head), memoryview(bytearray(tail)), MOST)


def tensor(name: str, kind: str, shape: list[Any], **more: Any) -> dict[str, Any]:
    """An input."""
    return {"name": name, "datatype": kind, "shape": shape, **more}


def behind(size: Any) -> dict[str, Any]:
    """The parameters of an input whose data follows."""
    return {"parameters": {"binary_data_size": size}}


PIXELS = tensor("pixels", "UINT8", [1, 1, 2, 3], data=[1, 2, 3, 4, 5, 6])


def as_bytes(image: Any) -> bytes:
    """An encoded image."""
    return bytes(image)


def refused(document: Any, tail: bytes = b"") -> str:
    """Why a request is."""
    with pytest.raises(BadInference) as caught:
        read(document, tail)
    return caught.value.detail


def test_encoded_images() -> None:
    """As binary data, or as base64 in JSON or behind it; one or two dimensions."""
    raw = packed([b"one", b""])
    for shape in ([2], [2, 1]):
        asked = read({"inputs": [tensor("image", "BYTES", shape, **behind(len(raw)))]}, raw)
        assert list(map(as_bytes, asked.images)) == [b"one", b""]
        coded = {"parameters": {"content_type": "base64"}}
        nested = ["eA==", "eQ=="] if len(shape) == 1 else [["eA=="], ["eQ=="]]
        asked = read({"inputs": [tensor("image", "BYTES", shape, data=nested, **coded)]})
        assert asked.images == ["eA==", "eQ=="]
        behind_it = packed([b"eA==", b"eQ=="])
        told = {"parameters": {"content_type": "base64", "binary_data_size": len(behind_it)}}
        asked = read({"inputs": [tensor("image", "BYTES", shape, **told)]}, behind_it)
        assert asked.images == ["eA==", "eQ=="]


@pytest.mark.parametrize(
    ("name", "kind", "dtype"), [("pixels", "UINT8", "u1"), ("pixel_values", "FP32", "<f4")]
)
def test_arrays(name: str, kind: str, dtype: str) -> None:
    """Row by row, low byte first; flat or nested in JSON."""
    values = np.arange(12).reshape(2, 1, 2, 3).astype(dtype)
    raw = values.tobytes()
    shape = [2, 1, 2, 3]
    documents = [
        ({"inputs": [tensor(name, kind, shape, **behind(len(raw)))]}, raw),
        ({"inputs": [tensor(name, kind, shape, data=values.tolist())]}, b""),
        ({"inputs": [tensor(name, kind, shape, data=values.ravel().tolist())]}, b""),
    ]
    for document, tail in documents:
        asked = read(document, tail)
        assert asked.shape == (2, 1, 2, 3) and len(asked.images) == 2
        np.testing.assert_array_equal(np.stack(asked.images), values)


def test_what_is_asked_for() -> None:
    """Deadlines in either unit, the earlier one; priorities as words and as Triton's numbers."""
    asked = read({"inputs": [PIXELS]})
    assert (asked.id, asked.binary, asked.classes) == (None, False, None)
    assert (asked.query.deadline_ms, asked.query.max_r, asked.query.priority) == (
        None,
        None,
        "normal",
    )
    parameters = {"timeout": 5000, "deadline_ms": 80, "max_r": 3, "binary_data_output": True}
    kserve = {"id": "7", "model_name": "its name"}
    asked = read(kserve | {"inputs": [PIXELS], "parameters": parameters})
    assert (asked.id, asked.binary, asked.query.deadline_ms, asked.query.max_r) == ("7", True, 5, 3)
    assert read({"inputs": [PIXELS], "parameters": {"timeout": 0}}).query.deadline_ms is None
    for given_as, meant in [
        (0, "normal"),
        (1, "high"),
        (2, "normal"),
        (3, "low"),
        (2**63, "low"),
        ("low", "low"),
        ("high", "high"),
    ]:
        asked = read({"inputs": [PIXELS], "parameters": {"priority": given_as}})
        assert asked.query.priority == meant


def test_the_output() -> None:
    """Its own word on binary data beats the request's."""
    request = {"inputs": [PIXELS], "parameters": {"binary_data_output": True}}
    for parameters, binary, classes in (
        (None, True, None),
        ({}, True, None),
        ({"binary_data": False}, False, None),
        ({"classification": 3}, True, 3),
    ):
        output = {"name": "probabilities", "parameters": parameters}
        asked = read(request | {"outputs": [output]})
        assert (asked.binary, asked.classes) == (binary, classes)
    assert read(request | {"outputs": []}).binary is True


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"inputs": [NaN]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "the request"),
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [PIXELS, PIXELS]}, "inputs"),
        ({"inputs": [PIXELS], "more": 1}, "more is not known"),
        ({"inputs": [PIXELS], "parameters": {"max_R": 1}}, "parameters.max_R is not known"),
        ({"inputs": [PIXELS], "parameters": {"max_r": True}}, "parameters.max_r"),
        ({"inputs": [PIXELS], "parameters": {"max_r": -1}}, "parameters.max_r"),
        ({"inputs": [PIXELS], "parameters": {"deadline_ms": 0}}, "parameters.deadline_ms"),
        ({"inputs": [PIXELS], "parameters": {"timeout": 1.5}}, "parameters.timeout"),
        ({"inputs": [PIXELS], "parameters": {"priority": "urgent"}}, "parameters.priority"),
        ({"inputs": [PIXELS], "parameters": {"sequence_id": 1}}, "sequence_id is not known"),
        ({"inputs": [PIXELS], "outputs": [{"name": "logits"}]}, "'probabilities'"),
        (
            {
                "inputs": [PIXELS],
                "outputs": [{"name": "probabilities", "parameters": {"classification": 0}}],
            },
            "classification",
        ),
        ({"inputs": [PIXELS | {"name": "x"}]}, "'image' (BYTES)"),
        ({"inputs": [PIXELS | {"datatype": "FP32"}]}, "is UINT8 and not 'FP32'"),
        ({"inputs": [PIXELS | {"shape": []}]}, "brings 0 images"),
        ({"inputs": [PIXELS | {"shape": [0, 1, 2, 3]}]}, "brings 0 images"),
        ({"inputs": [PIXELS | {"shape": [5, 1, 2, 3]}]}, "1 to 4"),
        ({"inputs": [PIXELS | {"shape": [1, -1, 2, 3]}]}, "shape.1"),
        ({"inputs": [PIXELS | {"shape": [1, 1, 2, 4]}]}, "takes 8 values"),
        ({"inputs": [PIXELS | {"shape": [1] * 9}]}, "shape"),
        ({"inputs": [PIXELS | {"shape": [1, 10**30]}]}, "takes 1000"),
        ({"inputs": [PIXELS | {"data": [1, [2], 3, 4, 5, 6]}]}, "not nested evenly"),
        ({"inputs": [PIXELS | {"data": [1, 2, 3, 4, 5, 256]}]}, "outside of 0 to 255"),
        ({"inputs": [PIXELS | {"data": [1, 2, 3, 4, 5, 10**30]}]}, "not UINT8"),
        ({"inputs": [PIXELS | {"data": [1, 2, 3, 4, 5, 0.5]}]}, "not UINT8"),
        ({"inputs": [PIXELS | {"data": [True] * 6}]}, "no numbers"),
        ({"inputs": [PIXELS | {"data": ["1"] * 6}]}, "no numbers"),
        ({"inputs": [PIXELS | {"data": [1, 2, [3, [None]]]}]}, "no numbers"),
        ({"inputs": [PIXELS | {"data": [{}]}]}, "no numbers"),
        ({"inputs": [PIXELS | {"data": []}]}, "values"),
        ({"inputs": [PIXELS | {"data": None}]}, "one of the two"),
        ({"inputs": [PIXELS | behind(6)]}, "one of the two"),
        ({"inputs": [tensor("image", "BYTES", [1], data=["x"])]}, "base64"),
        ({"inputs": [tensor("image", "BYTES", [1, 2], data=["x"])]}, "[1] or [1, 1]"),
        (
            {
                "inputs": [
                    tensor("image", "BYTES", [2], data=["x"], parameters={"content_type": "base64"})
                ]
            },
            "2 texts",
        ),
        (
            {
                "inputs": [
                    tensor("image", "BYTES", [1], data=[1], parameters={"content_type": "base64"})
                ]
            },
            "1 texts",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(document: Any, said: str) -> None:
    """With the member that is wrong, and what it should be."""
    assert said in refused(document)


@pytest.mark.parametrize("size", [0, 5, 7, 10**17, -1, "6", 6.5, True])
def test_sizes_are_not_believed(size: Any) -> None:
    """What follows the JSON is what the input says, and what its shape takes."""
    document = {"inputs": [tensor("pixels", "UINT8", [1, 1, 2, 3], **behind(size))]}
    assert "binary_data_size" in refused(document, b"123456")


def test_shapes_are_not_believed() -> None:
    """A shape of exabytes costs nothing but its refusal."""
    huge = [1, 10**9, 10**9, 3]
    document = {"inputs": [tensor("pixel_values", "FP32", huge, **behind(6))]}
    assert str(12 * 10**18) in refused(document, b"123456")
    assert "takes" in refused({"inputs": [tensor("pixels", "UINT8", huge, data=[1])]})
    assert "follow the JSON" in refused({"inputs": [PIXELS]}, b"more")


def test_long_json_is_refused_before_it_is_read() -> None:
    """Where numbers are many, they go behind the JSON."""
    with pytest.raises(ImageTooLarge, match="binary data"):
        read(b"[" + b"0," * MOST_JSON_VALUES + b"0],")
    many = {"inputs": [PIXELS], "parameters": {str(i): i for i in range(1000)}}
    assert "1000 members" in refused(many)
    assert "33 members" in refused({"inputs": [PIXELS | {"shape": [1] * 33}]})


def test_a_long_text_among_numbers_is_not_multiplied() -> None:
    """As an array of texts this would take 400 GB."""
    data = ["x" * 1_000_000, *([1] * 100_000)]
    assert "no numbers" in refused({"inputs": [PIXELS | {"data": data}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "pixels", "pixel_values"]),
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]),
        "shape": JSON | st.lists(st.integers(0, 3), max_size=4),
    },
    optional={
        "data": JSON,
        "parameters": JSON | st.fixed_dictionaries({"binary_data_size": st.integers(0, 9)}),
    },
)


@given(
    JSON | st.fixed_dictionaries({"inputs": st.lists(TENSOR, min_size=1, max_size=1)}),
    st.binary(max_size=9),
)
def test_any_document_is_read_or_refused(document: Any, tail: bytes) -> None:
    """By one of our errors, never by another."""
    try:
        asked = read(document, tail)
    except ServeError:
        return
    assert len(asked.images) == asked.shape[0] >= 1


def test_names_in_paths() -> None:
    """A hub's model is known by what is behind the slash."""
    assert (
        known_as("hf-hub:owner/vit") == "vit" and known_as("vit_tiny.augreg") == "vit_tiny.augreg"
    )
