import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_urpo.rollout.verdict import read_verdict
from megatron_urpo.types import VERDICT_OUTCOMES, Verdict

RANGE = (0.0, 10.0)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        (r"\boxed{7, 3}", 2, Verdict("ok", (7.0, 3.0))),
        (r"\boxed{ 7 , 3 }", 2, Verdict("ok", (7.0, 3.0))),
        (r"\boxed {7.5,0,+3.,.5}", 4, Verdict("ok", (7.5, 0.0, 3.0, 0.5))),
        (r"\boxed{1, 2} no: \boxed{4, 5} done", 2, Verdict("ok", (4.0, 5.0))),
        ("7, 3", 2, Verdict("no_scores")),
        ("", 2, Verdict("no_scores")),
        (r"\boxed{}", 2, Verdict("no_scores")),
        (r"\boxed{1, 2} then \boxed{3, 4", 2, Verdict("no_scores")),
        (r"\boxed{7}", 2, Verdict("wrong_count")),
        (r"\boxed{7 3}", 2, Verdict("wrong_count")),
        (r"\boxed{7, 3,}", 2, Verdict("wrong_count")),
        (r"\boxed{7, 3, 5}", 2, Verdict("wrong_count")),
        (r"\boxed{x, x}", 2, Verdict("not_a_number")),
        (r"\boxed{7,}", 2, Verdict("not_a_number")),
        (r"\boxed{nan, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{inf, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{7/10, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{1e0, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{٧, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{1_0, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{\text{7}, 3}", 2, Verdict("not_a_number")),
        (r"\boxed{11, 3}", 2, Verdict("out_of_range")),
        (r"\boxed{-1, 3}", 2, Verdict("out_of_range")),
        ("\\boxed{" + "9" * 400 + ", 3}", 2, Verdict("out_of_range")),
    ],
)
def test_outcomes(text: str, count: int, expected: Verdict) -> None:
    assert read_verdict(text, "stop", range(count), RANGE) == expected


def test_negative_scores_where_the_range_has_them() -> None:
    assert read_verdict(r"\boxed{-1.5, 3}", "stop", (0, 1), (-5, 5)) == Verdict("ok", (-1.5, 3.0))


def test_a_cut_text_is_truncated_even_after_a_whole_box() -> None:
    assert read_verdict(r"\boxed{7, 3} but", "length", (0, 1), RANGE) == Verdict("truncated")
    assert read_verdict(r"\boxed{7, ", "length", (0, 1), RANGE) == Verdict("truncated")
    assert read_verdict(r"\boxed{7, 3}", "abort", (0, 1), RANGE) == Verdict("truncated")


def test_the_permutation_is_undone() -> None:
    # Position 0 shows candidate 2, position 1 candidate 0, position 2 candidate 1.
    assert read_verdict(r"\boxed{9, 1, 5}", "stop", (2, 0, 1), RANGE).scores == (1.0, 5.0, 9.0)


@given(st.integers(1, 10).flatmap(lambda n: st.permutations(range(n))), st.data())
def test_written_scores_are_read_back_by_candidate(permutation: list[int], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(0, 100), min_size=len(permutation), max_size=len(permutation)))
    tenths = [score / 10 for score in scores]
    text = "thinking\n\\boxed{" + " , ".join(str(tenths[candidate]) for candidate in permutation) + "}"
    assert read_verdict(text, "stop", permutation, RANGE) == Verdict("ok", tuple(tenths))


@given(st.text(alphabet=st.sampled_from(list("\\boxed{}, .-+0123456789ex\n")) | st.characters()), st.integers(1, 4))
def test_never_raises_and_never_invents_a_score(text: str, count: int) -> None:
    verdict = read_verdict(text, "stop", range(count), RANGE)
    assert verdict.outcome in VERDICT_OUTCOMES
    assert len(verdict.scores) == (count if verdict.outcome == "ok" else 0)
    for score in verdict.scores:
        assert 0 <= score <= 10


@given(st.lists(st.sampled_from(["\\boxed{", "}", "{", ",", "7", "-", "nan", " ", "\\boxed"]), max_size=12))
def test_a_score_stands_in_the_last_box(pieces: list[str]) -> None:
    text = "".join(pieces)
    verdict = read_verdict(text, "stop", (0, 1), RANGE)
    if verdict.outcome == "ok":
        content = text.rpartition("\\boxed{")[2].partition("}")[0]
        assert [float(item) for item in content.split(",")] == list(verdict.scores)
