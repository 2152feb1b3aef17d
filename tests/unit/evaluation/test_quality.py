import sys

import pytest

from megatron_urpo.evaluation.quality import Answer, QualityError, rate_answers
from megatron_urpo.types import Message

ANSWERS = [Answer((Message("user", "Name 3\nthings"),), text) for text in ("a", "bb\u2028", "")]


def program(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


LENGTHS = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    assert row["prompt"] == "Name 3\\nthings"
    print(json.dumps({"quality": len(row["completion"])}))
"""


def test_one_rating_each_in_order() -> None:
    assert rate_answers(program(LENGTHS), ANSWERS) == [1.0, 3.0, 0.0]
    assert rate_answers(program(LENGTHS), []) == []


def test_a_longer_conversation_is_given_with_its_speakers() -> None:
    answer = Answer((Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "?")), "x")
    assert answer.prompt == "User: Hi\n\nAssistant: Yo\n\nUser: ?"


def test_no_shell_reads_the_arguments() -> None:
    code = "import sys; assert sys.argv[1] == '$(exit 3); exit 3'; print('{\"quality\": 1}')"
    assert rate_answers((*program(code), "$(exit 3); exit 3"), ANSWERS[:1]) == [1.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such topic')", "ended with status 1: no such topic"),
        ("print('{\"quality\": 1}')", "wrote 1 ratings for 3 answers"),
        ("print('hello')", "wrote 'hello'"),
        ("print('{\"quality\": NaN}')", "must be"),
        ("print('{\"quality\": true}')", "must be"),
        ("print('[]')", "must be"),
        ("import time; time.sleep(60)", "did not rate 3 answers within 1 s"),
    ],
)
def test_failures_name_the_program_and_the_reason(code: str, message: str) -> None:
    with pytest.raises(QualityError, match=r"evaluation\.scorer") as error:
        rate_answers(program(code), ANSWERS, timeout_seconds=1 if "sleep" in code else 60)
    assert message in str(error.value)
    assert "\n" not in str(error.value).replace(repr(code), "")


def test_a_missing_program() -> None:
    with pytest.raises(QualityError, match="cannot start 'no-such-program'"):
        rate_answers(("no-such-program",), ANSWERS)
