"""Finding the program, comparing what it gave, and plain values over a pipe."""

import json
import math
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_urpo.reward.verifiable.code.compare import same_text, same_value
from megatron_urpo.reward.verifiable.code.extract import last_program
from megatron_urpo.reward.verifiable.code.inside.plain import Channel, NotPlain, Opaque, dumps, loads


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nno:\n```python\nx = 2\n```\nyes", "x = 2\n"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("```py title=a.py\nx = 1\n```", "x = 1\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("```python\nx = 1\n```\n```text\noutput\n```", "x = 1\n"),
        ("```text\n```python\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", None),
        ("```python\nx = 1", None),
        ("```\nx = 1\n```", None),
        ("``python\nx\n``", None),
        ("```python\n \n```", None),
        ("", None),
    ],
)
def test_last_program(text: str, program: str | None) -> None:
    assert last_program(text) == program


@given(st.text(), st.text(alphabet="abc =\n`1", max_size=40))
def test_what_was_fenced_is_found_whatever_stood_before(before: str, program: str) -> None:
    if "```" not in program and program.strip() and "```" not in before:
        assert last_program(f"{before}\n```python\n{program}\n```\n") == f"{program}\n"


@given(st.text(alphabet="`python\n x"))
def test_any_text_is_read(text: str) -> None:
    program = last_program(text)
    assert program is None or program in text


@pytest.mark.parametrize(
    ("given_text", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1 2 \n\n\n", "1 2\n", True),
        ("1\r\n2\r\n", "1\n2", True),
        ("1  2", "1 2", True),
        ("1\n2", "1 2", False),
        ("\n1", "1", False),
        ("1.0000001", "1.0", True),
        ("1", "1.0", True),
        ("1.0", "1", False),
        ("2.00001", "2.0", False),
        ("nan", "1.0", False),
        ("1e400", "1.0", False),
        ("1_0.0", "10.0", False),
        ("٣.0", "3.0", False),
        ("Yes", "YES", False),
        ("", "", True),
        ("0" * 10**6 + "1", "1.0", False),
    ],
)
def test_printed_text(given_text: str, expected: str, same: bool) -> None:
    assert same_text(given_text, expected) is same


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        ((1, [2]), [1, [2]], True),
        ([1, 2], [2, 1], False),
        ({1: "a"}, {"1": "a"}, True),
        ({1: "a", "1": "b"}, {"1": "a"}, False),
        (True, 1, False),
        (1, True, False),
        (0.1 + 0.2, 0.3, True),
        (1, 1.0, True),
        (10**400, 1.0, False),
        (10**400, 10**400, True),
        (math.nan, 1.0, False),
        ("1", 1, False),
        (None, None, True),
        (None, False, False),
        (Opaque(), None, False),
        ({1}, [1], False),
        (b"a", "a", False),
    ],
)
def test_returned_values(value: Any, expected: Any, same: bool) -> None:
    assert same_value(value, expected) is same


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars, max_size=3)
values = st.recursive(
    hashable | st.sets(hashable, max_size=3) | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(hashable, inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    back = loads(dumps(value, {}), {})
    assert back == value
    assert type(back) is type(value)


class Node:
    def __init__(self, value: int, next: Any = None) -> None:
        self.value, self.next = value, next


def test_objects_of_known_classes_come_back_as_their_attributes_and_others_do_not() -> None:
    back = loads(dumps([Node(1, Node(2))], {"Node": Node}), {"Node": Node})
    assert (type(back[0]), back[0].next.value) == (Node, 2)
    loop = Node(1)
    loop.next = loop
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (Node(1), object(), len, iter([1]), deep, loop, 10**5000, [lambda: 1]):
        with pytest.raises(NotPlain):
            dumps(value, {"Node": Node} if value is loop else {})
    with pytest.raises(ValueError, match="no plain value"):
        loads(b'["o", ["Node", []]]', {})


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __int__(self) -> int:
        return 5

    __hash__ = int.__hash__


def test_a_subclass_arrives_as_its_base() -> None:
    back = loads(dumps([Liar(9)], {}), {})
    assert type(back[0]) is int
    assert Opaque() != Opaque()


TAGGED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["Node", "ab", "1", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(st.sampled_from([*"ltsfdbcox"]), inner | st.lists(inner | st.lists(inner, max_size=2), max_size=3))
    ),
    max_leaves=10,
)  # what nobody would send as often as what somebody might


@settings(max_examples=300)
@given(st.binary(max_size=40) | TAGGED.map(lambda tree: json.dumps(tree).encode()))
@example(b'["b","ab"]')
@example(b'["c",[1,2]]')
@example(b'["c",[1' + b"0" * 400 + b"]]")
@example(b'["o",["Node",[["value",["t",[1]]]]]]')
def test_no_bytes_do_more_than_raise_a_value_error(data: bytes) -> None:
    """What they do give is plain: it can be sent, and again what arrives. Sets may change their order on the way."""
    try:
        value = loads(data, {"Node": Node})
    except ValueError:
        return
    sent = dumps(value, {"Node": Node})
    assert len(dumps(loads(sent, {"Node": Node}), {"Node": Node})) == len(sent)


def test_nested_bytes_end() -> None:
    for data in (b"[" * 10**6, b'["l",[' * 300 + b"]]" * 300, b'["c",["x","y"]]', b'["d",[[["l",[]],1]]]', b"1" * 5000):
        with pytest.raises(ValueError, match=r"plain|deeply|limit|unpack|Exceeds|JSON|convert"):
            loads(data, {})


def test_frames() -> None:
    read, write = os.pipe()
    channel = Channel(read, write)
    channel.send(b"V", b"abc")
    channel.send(b"P")
    os.close(write)
    assert [channel.receive(), channel.receive()] == [(b"V", b"abc"), (b"P", b"")]
    with pytest.raises(EOFError):
        channel.receive()
    os.close(read)
