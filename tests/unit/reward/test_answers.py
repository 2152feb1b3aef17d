r"""The last box, and the answers that need no mathematics."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.reward.verifiable.answers import compare_plain, last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed { 7 , 3 } .", "7 , 3"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),
        (r"\boxed{a\\{b}}", r"a\\{b}"),
        ("\\boxed{\n5\n}", "5"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{7", None),
        (r"\boxed{1} then \boxed{\frac{1}{2}", None),
        (r"\boxed 7", None),
        (r"\fbox{7} \unboxed{7}", None),
        ("\\", None),
        ("\\boxed{\\", None),
        ("7", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@settings(deadline=None)
@given(
    st.text(), st.text(alphabet="ab12+-, .", min_size=1).filter(str.strip), st.text().filter(lambda t: "boxed" not in t)
)
def test_what_was_boxed_is_found_whatever_surrounds_it(before: str, answer: str, after: str) -> None:
    assert last_boxed(f"{before}\\boxed{{{answer}}}{after}") == answer.strip()


@settings(deadline=None)
@given(st.text(alphabet="\\boxed{} 1"))
def test_any_text_is_read(text: str) -> None:
    answer = last_boxed(text)
    assert answer is None or answer in text


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("7", ["7"], True),
        ("7", ["8"], False),
        ("8", ["7", "8"], True),
        ("-7", ["7"], False),
        ("+7", ["7"], True),
        ("007", ["7"], True),
        ("7.0", ["7"], True),
        ("7.", ["7"], True),
        (".5", ["0.50"], True),
        ("1,234", ["1234"], True),
        ("1234", ["1,234"], True),
        ("1,234.50", ["1234.5"], True),
        ("12,34", ["1234"], None),
        ("$18$", ["18"], True),
        ("$$ x + 1 $$", ["x + 1"], True),
        ("x  +\n1", ["x + 1"], True),
        ("x+1", ["x + 1"], None),
        ("yes", ["yes"], True),
        ("7.5", ["7"], None),
        ("0.333333", ["1/3"], None),
        ("7", [r"\frac{14}{2}"], None),
        ("7", ["8", "x"], None),
        ("1/2", ["0.5"], None),
        ("7 , 3", ["7"], None),
        ("", ["7"], None),
        # The question restated is no answer.
        ("3 + 4", ["7"], False),
        ("-3+10", ["7"], False),
        ("1 + 2 + 4", ["7", "8"], False),
        (r"7 \cdot 1", ["7"], False),
        ("14 - 7.0", ["7"], False),
        ("3 + 4", ["3 + 4"], True),
        ("3 + 4", ["x"], None),
        ("3 + 4 i", ["7"], None),
        # Too long to be read as a number.
        ("9" * 101, ["7"], None),
    ],
)
def test_compare_plain(answer: str, accepted: list[str], expected: bool | None) -> None:
    assert compare_plain(answer, accepted) is expected


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_always_decided(answer: int, truth: int) -> None:
    for shown in (str(answer), f"{answer:,}", f"{answer}.0", f" {answer} "):
        assert compare_plain(shown, [str(truth)]) is (answer == truth)
        assert compare_plain(shown, [f"{answer:,}"]) is True
