"""Readers: rows as published become the right fields, others a reason; no row of any shape makes a reader fail."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.rows import parse_row
from megatron_urpo.data.sources import READERS, RowError, reader_of
from tests.support import published as p
from tests.support.published import Row, completion, skywork, turns

ASK = turns("Why?")


def read(dataset: str, row: Row) -> dict[str, Any]:
    """Fields that a store's row takes, too."""
    reader = READERS[dataset]
    fields = reader.read(row)
    parse_row({"id": "i", "task": reader.task, **fields}, "row")
    return fields


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        (p.SKYWORK[0], {"answers": ["42"]}),
        (p.SKYWORK[1], {"answers": ["\\frac16"]}),
        (skywork("train-math-x", "q", '["1/2", "0.5"]'), {"answers": ["1/2", "0.5"]}),
        (skywork("train-math-x", "q", "[1, 2]"), {"answers": ["[1, 2]"]}),
        (skywork("train-math-x", "q", "[]"), {"answers": ["[]"]}),
        (p.SKYWORK[2], {"tests": {"kind": "functional", "import_prefix": "import math\n",
                                  "test_code": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
                                  "entry_point": "Solution().add"}}),
        (p.SKYWORK[3], {"tests": {"kind": "stdin", "inputs": ["1 2\n"], "outputs": ["3\n"]}}),
        (p.SKYWORK[4], {"tests": {"kind": "calls", "fn_name": "twice", "inputs": ["4", "5"], "outputs": ["8", "10"]}}),
        (skywork("train-code-x", "q", {"inputs": [[1, "a"]], "outputs": [[2]], "fn_name": "f"}),
         {"tests": {"kind": "calls", "fn_name": "f", "inputs": ['1\n"a"'], "outputs": ["[2]"]}}),
        (skywork("train-code-x", "q", {"inputs": [["1", "2"]], "outputs": ["3"]}),
         {"tests": {"kind": "stdin", "inputs": ["1\n2"], "outputs": ["3"]}}),
    ],
)  # fmt: skip
def test_skywork(row: Row, truth: Row) -> None:
    fields = read("skywork_or1", row)
    assert fields.pop("messages") == [{"role": "user", "content": row["prompt"][0]["content"]}]
    assert fields == truth


@pytest.mark.parametrize(
    ("dataset", "row", "responses", "values"),
    [
        ("helpsteer3", p.HELPSTEER3[0], ["Pear.", "Carrot."], [2, -2]),
        ("helpsteer3", p.HELPSTEER3[2], ["Hello, hola.", "Hello, bonjour."], [0, 0]),
        ("ultrafeedback", p.ULTRAFEEDBACK[0], ["Water falls from clouds.", "Rain.", "It is wet.",
                                               "Clouds cool and shed water."], [8.5, 1, 6, 10]),
        ("skywork_preference", p.SKYWORK_PREFERENCE[0], ["No, it is round.", "Yes."], [1, 0]),
        ("offsetbias", p.OFFSETBIAS[0], ["bonjour", "good morning!"], [1, 0]),
        ("offsetbias", p.OFFSETBIAS[1], ["Milan, a very beautiful city in the north.", "Rome."], [0, 1]),
        ("alpaca_eval_annotations", p.ANNOTATIONS[0], ["It is not.", "Air scatters blue light."], [0.25, 0.75]),
        ("alpaca_eval_annotations", p.ANNOTATIONS[0] | {"preference": 1.5}, ["It is not.", "Air scatters blue light."],
         [0.5, 0.5]),
        ("alpaca_eval_annotations", p.ANNOTATIONS[0] | {"preference": 0}, ["It is not.", "Air scatters blue light."],
         [0.5, 0.5]),
        ("prompt_chosen_rejected", {"prompt": "q", "chosen": "a", "rejected": "b"}, ["a", "b"], [1, 0]),
        ("prompt_chosen_rejected", p.SKYWORK_PREFERENCE[0], ["No, it is round.", "Yes."], [1, 0]),
        ("prompt_responses", {"prompt": ASK, "responses": ["a", "b", "c"], "scores": [3, 1, 3]}, ["a", "b", "c"],
         [3, 1, 3]),
    ],
)  # fmt: skip
def test_rankings(dataset: str, row: Row, responses: list[str], values: list[float]) -> None:
    fields = read(dataset, row)
    assert (fields["responses"], fields["scores"]) == (responses, values)


def test_questions_of_several_turns_keep_their_context() -> None:
    assert read("helpsteer3", p.HELPSTEER3[0])["messages"] == turns("Name a fruit.", "Apple.", "Another one?")
    nectar = read("nectar", p.NECTAR[0])
    assert nectar["messages"] == turns("Tell me a joke about cats.", "Why?", "Just do it.")
    assert nectar["ranks"] == [3.0, 1.0, 2.0, 5.5, 5.5, 4.0, 7.0]
    assert read("offsetbias", p.OFFSETBIAS[0])["messages"] == turns("Translate to French.\n\ngood morning")
    assert read("prompt_collection", p.PROMPT_COLLECTION[1])["messages"][0]["role"] == "system"
    # The question of a supervised row is what comes before its answer.
    assert read("tulu3", p.TULU[0])["messages"] == turns("What is a noun in grammar?")
    assert read("messages", {"messages": p.RMB[0]["conversation_input"]})["messages"] == turns(
        "Give me three names for a dog."
    )


@pytest.mark.parametrize(
    ("dataset", "row", "answers"),
    [
        ("gsm8k", p.GSM8K[0], ["1234"]),
        ("math", p.MATH500[0], ["3"]),
        ("math", {"problem": "q", "solution": "\\boxed{1}, no, \\boxed{\\frac{1}{2}}."}, ["\\frac{1}{2}"]),
        ("prompt_answer", {"prompt": "q", "answer": 7}, ["7"]),
        ("prompt_answer", {"prompt": "q", "answer": ["7", "seven"]}, ["7", "seven"]),
    ],
)
def test_answers(dataset: str, row: Row, answers: list[str]) -> None:
    assert read(dataset, row)["answers"] == answers


def test_humaneval_is_a_functional_test() -> None:
    fields = read("humaneval", p.HUMANEVAL[0])
    assert fields["tests"] == {"kind": "functional", "import_prefix": "from typing import List\n",
                               "test_code": p.HUMANEVAL[0]["test"], "entry_point": "first"}  # fmt: skip
    assert "def first" in fields["messages"][0]["content"]


BAD_ROWS = [
    ("gsm8k", {"question": "q"}, "answer is missing"),
    ("gsm8k", {"question": "q", "answer": "42"}, "no `#### `"),
    ("gsm8k", {"question": "q", "answer": "#### "}, "no `#### `"),
    ("gsm8k", {"question": " ", "answer": "#### 1"}, "question is empty"),
    ("gsm8k", {"question": 3, "answer": "#### 1"}, "question is a number, not a text"),
    ("math", {"problem": "q", "solution": "no box"}, "solution has no"),
    ("math", {"problem": "q", "solution": "\\boxed{1"}, "solution has no"),
    ("skywork_or1", {"prompt": ASK}, "ground_truth is missing"),
    ("skywork_or1", skywork("train-math-x", "q", ""), "ground_truth is empty"),
    ("skywork_or1", skywork("train-code-x", "q", "not json"), "ground_truth is not JSON"),
    ("skywork_or1", skywork("train-code-x", "q", "[]"), "no object of tests"),
    ("skywork_or1", skywork("train-code-x", "q", {"inputs": ["1"], "outputs": []}), "as many inputs as outputs"),
    ("skywork_or1", skywork("train-code-x", "q", {"inputs": [1], "outputs": ["1"]}), "is no text"),
    ("skywork_or1", {"prompt": [], "reward_model": {"ground_truth": "1"}}, "prompt is empty"),
    ("helpsteer3", p.HELPSTEER3[0] | {"overall_preference": 5}, "whole number from -3 to 3"),
    ("helpsteer3", p.HELPSTEER3[0] | {"overall_preference": None}, "overall_preference is missing"),
    ("ultrafeedback", {"instruction": "q", "completions": [completion("a", 10, 2) | {"fine-grained_score": None}]},
     "fine-grained_score is missing"),
    ("ultrafeedback", {"instruction": "q", "completions": [{"response": "a", "overall_score": "N/A"}]},
     "overall_score is str, not a number"),
    ("skywork_preference", {"chosen": turns("a", "b"), "rejected": turns("c", "d")}, "differ before their last turn"),
    ("skywork_preference", {"chosen": turns("a"), "rejected": turns("b")}, "ends with a turn of 'user'"),
    ("nectar", {"prompt": "Tell me.", "answers": []}, "does not begin with `Human:`"),
    ("nectar", {"prompt": "\n\nHuman: a\n\nHuman: b\n\nAssistant: ", "answers": []}, "do not alternate"),
    ("nectar", {"prompt": "\n\nHuman: a\n\nAssistant: b", "answers": []}, "do not alternate"),
    ("offsetbias", p.OFFSETBIAS[0] | {"label": 3}, "label is 3, neither 1 nor 2"),
    ("offsetbias", p.OFFSETBIAS[0] | {"label": True}, "label is True"),
    ("alpaca_eval_annotations", p.ANNOTATIONS[0] | {"preference": None}, "the annotator gave none"),
    ("alpaca_eval_annotations", p.ANNOTATIONS[0] | {"preference": 2.5}, "none of null, 0 and 1 to 2"),
    ("humaneval", p.HUMANEVAL[0] | {"test": "assert True"}, "no `def check("),
    ("prompt_answer", {"prompt": "q", "answer": None}, "answer is missing"),
    ("prompt_answer", {"prompt": "q", "answer": {"a": 1}}, "answer is no text"),
    ("prompt_answer", {"prompt": "q", "answer": []}, "answer is no text"),
    ("prompt_responses", {"prompt": "q", "responses": "a"}, "responses is no list"),
    ("prompt_responses", {"prompt": "q", "responses": []}, "has 0; a ranking needs 2"),
    ("prompt_responses", {"prompt": "q", "responses": ["a"], "ranks": [1]}, "has 1; a ranking needs 2"),
    ("prompt_responses", {"prompt": "q", "responses": ["a", "b"]}, "neither scores nor ranks"),
    ("prompt_responses", {"prompt": "q", "responses": ["a", "b"], "ranks": []}, "has 0 for 2 responses"),
    ("messages", {"messages": turns("q", "a", "b", "c")[1:]}, None),
    ("messages", {"messages": "q"}, "messages is no list of objects"),
    ("tulu3", {"messages": [{"role": "user", "content": None}]}, "content is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("dataset", "row", "reason"), BAD_ROWS)
def test_a_row_that_does_not_fit_has_a_reason(dataset: str, row: Row, reason: str | None) -> None:
    if reason is None:
        read(dataset, row)
        return
    with pytest.raises((RowError, DataError)) as caught:
        read(dataset, row)
    assert reason in str(caught.value)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=4), scalars, max_size=2)
GOOD = {
    "skywork_or1": p.SKYWORK, "gsm8k": p.GSM8K, "math": p.MATH500, "humaneval": p.HUMANEVAL,
    "helpsteer3": p.HELPSTEER3, "ultrafeedback": p.ULTRAFEEDBACK, "skywork_preference": p.SKYWORK_PREFERENCE,
    "nectar": p.NECTAR, "offsetbias": p.OFFSETBIAS, "alpaca_eval_annotations": p.ANNOTATIONS,
    "prompt_collection": p.PROMPT_COLLECTION, "tulu3": p.TULU,
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_row_makes_a_reader_fail(data: st.DataObject) -> None:
    """Good rows with one value, anywhere in them, replaced by anything."""
    dataset = data.draw(st.sampled_from(sorted(GOOD)))

    def damage(value: Any) -> Any:
        if isinstance(value, dict | list) and value and data.draw(st.booleans()):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = data.draw(st.sampled_from(keys))
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = damage(changed[key])
            return changed
        return data.draw(values)

    row = damage(data.draw(st.sampled_from(GOOD[dataset])))
    if isinstance(row, dict):
        with contextlib.suppress(RowError, DataError):
            read(dataset, row)


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean `helpsteer3`"):
        reader_of("helpster3", "sources.0.dataset")
