"""Buckets: what is planned, and that a stream which is not the plan's is found out before its bucket is full."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_urpo.weight_sync.buckets import Bucket, check_end, fill, plan_buckets

SHAPES = {"a": (2, 3), "b": (4,), "c": (5, 5), "d": (1,)}  # 24, 16, 100 and 4 bytes in float32

shapes_of_models = st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=30).map(
    lambda shapes: {f"w{index}": shape for index, shape in enumerate(shapes)}
)


def stream() -> list[tuple[str, Tensor]]:
    return [(name, torch.full(shape, index + 0.5)) for index, (name, shape) in enumerate(SHAPES.items())]


def whole() -> Bucket:
    (bucket,) = plan_buckets(SHAPES, torch.float32, 10**6)
    return bucket


def test_a_plan_by_hand() -> None:
    buckets = plan_buckets(SHAPES, torch.float32, 40)
    assert [bucket.names for bucket in buckets] == [("a", "b"), ("c",), ("d",)]  # c alone is above the limit
    assert [bucket.num_bytes for bucket in buckets] == [40, 100, 4]
    assert [bucket.names for bucket in plan_buckets(SHAPES, torch.bfloat16, 72)] == [("a", "b", "c", "d")]
    assert [bucket.names for bucket in plan_buckets(SHAPES, torch.float32, 39)] == [("a",), ("b",), ("c",), ("d",)]


@given(shapes_of_models, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 3000))
def test_every_plan(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, limit: int) -> None:
    buckets = plan_buckets(shapes, dtype, limit)
    assert {n: s for b in buckets for n, s in zip(b.names, b.shapes, strict=True)} == shapes
    assert [name for bucket in buckets for name in bucket.names] == list(shapes)
    for bucket in buckets:
        assert bucket.num_bytes == sum(math.prod(shape) * dtype.itemsize for shape in bucket.shapes)
        assert bucket.num_bytes <= limit or len(bucket.names) == 1
    for bucket, following in itertools.pairwise(buckets):  # none could have taken one more
        assert bucket.num_bytes + math.prod(following.shapes[0]) * dtype.itemsize > limit


@given(shapes_of_models, st.integers(1, 3000))
def test_a_filled_buffer_is_the_bytes_one_after_the_other(shapes: dict[str, tuple[int, ...]], limit: int) -> None:
    tensors = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}
    weights = iter(tensors.items())
    for bucket in plan_buckets(shapes, torch.bfloat16, limit):
        buffer = torch.full((bucket.num_bytes + 5,), 77, dtype=torch.uint8)
        fill(bucket, weights, buffer)
        expected = torch.cat([tensors[name].reshape(-1).view(torch.uint8) for name in bucket.names])
        assert torch.equal(buffer[: bucket.num_bytes], expected)
        assert buffer[bucket.num_bytes :].tolist() == [77] * 5
        for name, view in bucket.views(buffer):
            assert torch.equal(view, tensors[name])
    check_end(weights)


def test_a_tensor_that_is_laid_out_otherwise_is_copied_in_order() -> None:
    (bucket,) = plan_buckets({"w": (3, 2)}, torch.float32, 100)
    buffer = torch.empty(24, dtype=torch.uint8)
    fill(bucket, iter([("w", torch.arange(6.0).reshape(2, 3).t())]), buffer)
    assert buffer.view(torch.float32).tolist() == [0, 3, 1, 4, 2, 5]


def faults() -> Iterator[tuple[str, list[tuple[str, Tensor]], str]]:
    tensors = stream()
    yield "unknown", [("x", torch.zeros(3)), *tensors], "x came where a was due"
    yield "missing", tensors[1:], "b came where a was due"
    yield "missing at the end", tensors[:-1], "d did not come"
    yield "twice", [tensors[0], *tensors], "a came where b was due"
    yield "order", [tensors[1], tensors[0], *tensors[2:]], "b came where a was due"
    yield "shape", [("a", torch.zeros(3, 2)), *tensors[1:]], r"a has shape \(3, 2\)"
    yield "flat", [("a", torch.zeros(6)), *tensors[1:]], r"a has shape \(6,\)"
    yield "one that would broadcast", [("a", torch.zeros(1, 3)), *tensors[1:]], r"a has shape \(1, 3\)"
    yield "dtype", [("a", torch.zeros(2, 3, dtype=torch.bfloat16)), *tensors[1:]], "a has .* torch.bfloat16"


@pytest.mark.parametrize(
    ("name", "tensors", "message"), faults(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_fault_is_named(name: str, tensors: list[tuple[str, Tensor]], message: str) -> None:
    buffer = torch.empty(whole().num_bytes, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        fill(whole(), iter(tensors), buffer)


@pytest.mark.parametrize("name", ["d", "x"])
def test_more_than_was_planned_is_named(name: str) -> None:
    weights = iter([*stream(), (name, torch.zeros(1))])
    fill(whole(), weights, torch.empty(whole().num_bytes, dtype=torch.uint8))
    with pytest.raises(ValueError, match=f"{name} is unknown to the model, or came twice"):
        check_end(weights)
