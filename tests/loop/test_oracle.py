"""The hidden oracle judges held-out answers and nothing else: no reward of an instruction prompt knows of it."""

import json
from pathlib import Path

from tests.loop.runs import metrics, train, transcripts
from tests.support.miniature import ROOT, Miniature

# A scorer that notes each call beside itself and likes the answers of one run as the other run hates them.
SPY = """
import json, pathlib, sys
rows = [json.loads(line) for line in sys.stdin]
with pathlib.Path(__file__).with_suffix(".calls").open("a") as file:
    file.write(json.dumps([row["prompt"] for row in rows]) + "\\n")
for number, row in enumerate(rows):
    print(json.dumps({"quality": QUALITY}))
"""


def test_rewards_do_not_know_the_oracle(miniature: Miniature, tmp_path: Path) -> None:
    held_out = tmp_path / "heldout.jsonl"
    row = {"id": "h", "task": "instruction", "messages": [{"role": "user", "content": "Name 3 tools"}]}
    held_out.write_text(json.dumps(row) + "\n")
    runs = []
    for name, quality in (("kind", "number % 7"), ("cruel", "-number")):
        spy = tmp_path / f"{name}.py"
        spy.write_text(SPY.replace("QUALITY", quality))
        values = {"evaluation.data": f"[{held_out}]", "evaluation.scorer": f"[python3, {spy}]"}
        runs.append(train(miniature, tmp_path / name, num_steps=2, **values))
        calls = [json.loads(line) for line in spy.with_suffix(".calls").read_text().splitlines()]
        assert len(calls) == 2  # before the first step and after the last
        assert {prompt for call in calls for prompt in call} == {"Name 3 tools"}
    assert transcripts(runs[0]) == transcripts(runs[1])
    quality = [metrics(run)[-1]["eval/instruction/quality"] for run in runs]
    assert quality[0] != quality[1]


def test_rewards_are_the_referees_scores(miniature: Miniature, tmp_path: Path) -> None:
    run = train(miniature, tmp_path / "run", num_steps=3)
    groups = [json.loads(line) for text in transcripts(run).values() for line in text.splitlines()]
    groups = [group for group in groups if group["task"] == "instruction"]
    scored = [group for group in groups if group["judgements"][-1]["outcome"] == "ok"]
    assert scored
    for group in groups:
        rewards = [completion["reward"] for completion in group["completions"]]
        last = group["judgements"][-1]
        assert rewards == (last["scores"] if group in scored else [None] * len(rewards))
        assert len(group["judgements"]) <= 2


def test_the_package_does_not_know_the_example() -> None:
    for path in (ROOT / "megatron_urpo").rglob("*.py"):
        assert "oracle" not in path.read_text().lower(), path
