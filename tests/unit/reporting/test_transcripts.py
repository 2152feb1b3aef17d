import json
from pathlib import Path

from megatron_urpo.reporting.transcripts import write_transcript
from megatron_urpo.types import (
    Completion,
    Group,
    Judgement,
    Message,
    PreferencePrompt,
    ReasoningPrompt,
    ScoringPrompt,
    StdinTests,
    Verdict,
    VersionSpan,
)

HOSTILE = 'line\nbreak \u2028 "quote" \x1b[31m \ud800 <|im_end|>'


def completion(version: int) -> Completion:
    return Completion((5, 6, 2), (-1.0,) * 3, "stop", (VersionSpan(version, 0, 3),))


def test_a_group_is_written_whole(tmp_path: Path) -> None:
    judgement = Judgement(ScoringPrompt((1, 2, 3), (1, 0), 1), completion(7), HOSTILE, Verdict("ok", (2.0, 8.0)))
    preference = Group(
        prompt=PreferencePrompt("p", (Message("user", HOSTILE),), ("a", HOSTILE), (0.0, 1.0), "store"),
        prompt_ids=(1, 2, 3),
        completions=(completion(7),),
        texts=(HOSTILE,),
        rewards=(1.0,),
        outcomes=("ok",),
        judgements=(judgement,),
    )
    dropped = Group(ReasoningPrompt("r", (), ("4",)), (1,), (), (), (), (), dropped="prompt_too_long")
    path = tmp_path / "step_000012.jsonl"
    write_transcript(path, [preference, dropped], [None, "prompt_too_long"], [[0.5], []])
    content = path.read_bytes()
    assert content.isascii()
    assert b"\x1b" not in content
    first, second = map(json.loads, content.decode().splitlines())
    assert first == {
        "group": 0,
        "task": "preference",
        "prompt": {
            "id": "p",
            "source": "store",
            "messages": [{"role": "user", "content": HOSTILE}],
            "responses": ["a", HOSTILE],
            "gold": [0.0, 1.0],
        },
        "num_prompt_tokens": 3,
        "dropped": None,
        "completions": [
            {
                "text": HOSTILE,
                "num_tokens": 3,
                "finish_reason": "stop",
                "versions": [7],
                "outcome": "ok",
                "reward": 1.0,
                "advantage": 0.5,
            }
        ],
        "judgements": [
            {
                "permutation": [1, 0],
                "num_prompt_tokens": 3,
                "num_cut": 1,
                "text": HOSTILE,
                "num_tokens": 3,
                "finish_reason": "stop",
                "versions": [7],
                "outcome": "ok",
                "scores": [2.0, 8.0],
            }
        ],
    }
    assert (second["task"], second["dropped"], second["prompt"]["answers"]) == ("reasoning", "prompt_too_long", ["4"])
    write_transcript(path, [], [], [])
    assert path.read_bytes() == b""


def test_the_tests_of_a_program_are_written(tmp_path: Path) -> None:
    prompt = ReasoningPrompt("c", (), (), tests=StdinTests(("1\n",), (HOSTILE,)))
    write_transcript(tmp_path / "t.jsonl", [Group(prompt, (1,), (), (), (), (), dropped="x")], ["x"], [[]])
    row = json.loads((tmp_path / "t.jsonl").read_text())
    assert row["prompt"]["tests"] == {"kind": "stdin", "inputs": ["1\n"], "outputs": [HOSTILE]}
