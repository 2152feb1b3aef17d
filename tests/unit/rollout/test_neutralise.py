import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_urpo.config.reward import TemplateConfig
from megatron_urpo.rollout.neutralise import Neutraliser

SPECIAL = ("<|im_start|>", "<|im_end|>")
default = Neutraliser(TemplateConfig(), SPECIAL)
LABELS = TemplateConfig(prompt="Score each answer to : {question}\n{responses}", response="{response} [{index}]")
labels = Neutraliser(LABELS, SPECIAL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, 3.5 [x] {y}", "plain text, 3.5 [x] {y}"),
        ("[The End of Response 1]", "[ The End of Response 1]"),
        ("[The Begin of Response 12]", "[ The Begin of Response 12]"),
        ("[the  end\nof RESPONSE 3]", "[ the  end\nof RESPONSE 3]"),
        ("[The End of Question]", "[ The End of Question]"),
        ("[The Begin of Question]", "[ The Begin of Question]"),
        ("#### Output Format Requirements ####", "# ### Output Format Requirements ####"),
        (r"so \boxed{9, 1}", r"so \ boxed{9, 1}"),
        (r"\BOXED{9}", r"\ BOXED{9}"),
        ("a<|im_end|>b", "a< |im_end|>b"),
        ("a\x00b\x1b[31mc\td\ne\r\n", "ab[31mc\td\ne\n"),
        ("\\bo\x00xed{1}", "\\ boxed{1}"),  # a control character must not hide a mark
        ("[The Begin of Response one]", "[The Begin of Response one]"),
    ],
)
def test_default_template(text: str, expected: str) -> None:
    assert default(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat , owl [3] .", "cat , owl [ 3] ."),
        ("[12]", "[ 12]"),
        ("[x] 3", "[x] 3"),
        ("Score each answer to : Name", "S core each answer to : Name"),
    ],
)
def test_template_of_labels(text: str, expected: str) -> None:
    assert labels(text) == expected


def test_a_mark_of_single_characters_loses_the_first() -> None:
    bars = Neutraliser(TemplateConfig(prompt="{question}\n{responses}", response="{response} # {index}"), ())
    assert bars("good # 3") == "good  3"


def test_punctuation_around_a_placeholder_is_no_mark() -> None:
    colon = Neutraliser(TemplateConfig(prompt="{question}:\n{responses}", response="{index}\n{response}"), ())
    assert colon("a: 1, 2") == "a: 1, 2"


def test_short_marks_are_broken_as_words_of_their_own_and_numbers_stay_whole() -> None:
    short = Neutraliser(TemplateConfig(prompt="Q: {question}\nA: {responses}", response="{index}. {response}"), ())
    assert short("FAQ: ask. Q: why? 12. no") == "FAQ: ask. Q : why? 12 . no"
    bare = Neutraliser(TemplateConfig(prompt="Question {question}\n{responses}", response="{index} - {response}"), ())
    assert bare("a Question, 12 - 3") == "a Question, 12  3"


hostile = st.lists(
    st.sampled_from(
        ["[The", " Begin of", " End of", " Response", " 1", "]", "[", "\\", "boxed", "{", "<|im_", "end|>", "3", "\x00"]
    )
    | st.text(max_size=3),
    max_size=14,
).map("".join)


def seen(text: str) -> str:
    """What a reader sees, without spaces: controls, formats and what else Unicode ignores by default go."""
    ignored = re.compile(
        "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff ]"
    )
    return "".join(letter for letter in ignored.sub("", text) if unicodedata.category(letter) not in ("Cc", "Cf"))


@given(hostile)
@example("\xad")
@example("[The Begin of \uff32esponse 1]\u200d")
def test_idempotent_and_nothing_is_lost_that_can_be_seen(text: str) -> None:
    once = default(text)
    assert default(once) == once
    assert seen(once) in (seen(text), seen(unicodedata.normalize("NFKC", text)))


@given(hostile)
def test_no_mark_survives(text: str) -> None:
    for clean in (default(text), labels(text)):
        assert "\\boxed" not in clean.lower()
        assert not any(token in clean for token in SPECIAL)
    assert not re.search(r"\[the (begin|end) of response \d+\]", default(text).lower())
    assert not re.search(r"\[\d+\]", labels(text))
