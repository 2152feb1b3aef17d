"""Run folders for the report, made without training: a referee that is being fooled, and text that means harm."""

import json
import random
from pathlib import Path
from typing import Any

Row = dict[str, Any]

CONFIG = """\
run_dir: runs/made  # from the command line
num_steps: {num_steps}  # from config.yaml
model: {{path: models/small}}
data:
  curriculum:
    - {{until: {phase}, mix: {{preference: 1, reasoning: 1}}}}
    - {{mix: {{preference: 1, reasoning: 1, instruction: 1}}}}
rollout: {{completions_per_prompt: 8}}
referee: {{score_range: [0, 9], votes: 1}}
logging: {{transcripts: true}}
"""
HOSTILE = (
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 2'>",
    "</script><script>window.harmed = 3</script><!-- <script>",
    "{{data}} {{script}} javascript:window.harmed=4 &lt;b&gt;",
    "left \u202eright\u2066 over\u200b \x1b[31mred\x07 \x00 \r\ud800 end",
)
FRUITS = ["apple", "pear", "plum", "cherry", "fig", "peach", "lemon", "mango", "quince", "grape"]


def write_run(path: Path, num_steps: int = 12, planned: int | None = None, phase: int = 4, groups: int = 12) -> Path:
    """A run in which self-scores rise and quality falls, as answers learn to repeat what the referee likes."""
    rng = random.Random(0)
    (path / "transcripts").mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG.format(num_steps=planned or num_steps, phase=phase))
    (path / "environment.json").write_text(json.dumps({"commit": "0123456789abcdef", "world_size": 1}))
    lines = [{"step": 0, **held_out(0.0)}]
    for step in range(1, num_steps + 1):
        skill = step / num_steps
        rows = [group(rng, step, index, skill, step > phase) for index in range(groups)]
        write_rows(path / "transcripts" / f"step_{step:06d}.jsonl", rows)
        evaluated = held_out(skill) if step % max(1, num_steps // 6) == 0 else {}
        lines.append({"step": step, **metrics(rng, skill, step > phase, groups), **evaluated})
    write_rows(path / "metrics.jsonl", lines)
    return path


def write_rows(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def group(rng: random.Random, step: int, index: int, skill: float, instruction: bool) -> Row:
    tasks = ["reasoning", "preference"] + ["instruction"] * instruction
    makers = {"reasoning": reasoning, "preference": preference, "instruction": self_scored}
    task = tasks[index % len(tasks)]
    return {"group": index, "task": task, "num_prompt_tokens": 20, **makers[task](rng, step, index, skill)}


def reasoning(rng: random.Random, step: int, index: int, skill: float) -> Row:
    a, b = rng.randint(2, 90), rng.randint(2, 90)
    right = [rng.random() < 0.3 + 0.5 * skill for _ in range(8)]
    answers = [a + b if ok else a + b + rng.randint(1, 9) for ok in right]
    completions = [
        completion(f"I add {a} and {b} and get \\boxed{{{n}}}", float(ok), 0.0, "correct" if ok else "wrong", step)
        for n, ok in zip(answers, right, strict=True)
    ]
    dropped = "no_signal" if len(set(right)) == 1 else None
    return prompt(f"reasoning/{step}/{index}", f"What is {a} + {b}?", answers=[str(a + b)]) | {
        "dropped": dropped, "completions": completions, "judgements": [],
    }  # fmt: skip


def preference(rng: random.Random, step: int, index: int, skill: float) -> Row:
    responses = [" ".join(rng.sample(FRUITS, rng.randint(1, 5))) for _ in range(4)]
    gold = [len(set(response.split())) / 5 for response in responses]
    permutation = rng.sample(range(4), 4)
    judgements = []
    for _ in range(8):
        readable = rng.random() < 0.6 + 0.39 * skill
        scores = [min(9.0, max(0.0, round(9 * value + rng.gauss(0, 4 - 3 * skill)))) for value in gold]
        judgements.append(judgement(permutation, scores if readable else None, step))
    completions = [
        completion(
            one["text"], rng.choice([-0.33, 0.0, 0.33, 1.0]) if one["scores"] else -1.0, 0.3, one["outcome"], step
        )
        for one in judgements
    ]
    return prompt(f"preference/{step}/{index}", "Name some fruits", responses=responses, gold=gold) | {
        "dropped": None, "completions": completions, "judgements": judgements,
    }  # fmt: skip


def self_scored(rng: random.Random, step: int, index: int, skill: float) -> Row:
    fooled = [rng.random() < skill * 0.7 for _ in range(8)]
    texts = [
        " ".join([rng.choice(FRUITS)] * rng.randint(6, 18)) + " ." if bad else " ".join(rng.sample(FRUITS, 4)) + " ."
        for bad in fooled
    ]
    scores = [float(rng.randint(6, 9) if bad else rng.randint(1, 6)) for bad in fooled]
    readable = rng.random() < 0.8
    asks = [judgement(rng.sample(range(8), 8), scores if readable else None, step) for _ in range(1 if readable else 2)]
    average = sum(scores) / 8
    completions = [
        completion(text, score if readable else None, (score - average) / 2 if readable else None,
                   "scored" if readable else "masked_verdict_wrong_count", step)
        for text, score in zip(texts, scores, strict=True)
    ]  # fmt: skip
    return prompt(f"instruction/{step}/{index}", f"Name {rng.randint(2, 6)} fruits that keep well in winter") | {
        "dropped": None if readable else "verdict_wrong_count", "completions": completions, "judgements": asks,
    }  # fmt: skip


def prompt(id_: str, text: str, **more: Any) -> Row:
    return {"prompt": {"id": id_, "source": "made", "messages": [{"role": "user", "content": text}], **more}}


def completion(text: str, reward: float | None, advantage: float | None, outcome: str, step: int) -> Row:
    return {
        "text": text, "num_tokens": len(text.split()), "finish_reason": "stop", "versions": [step - 1],
        "outcome": outcome, "reward": reward, "advantage": advantage,
    }  # fmt: skip


def judgement(permutation: list[int], scores: list[float] | None, step: int) -> Row:
    """`scores` in the responses' own order; None for a verdict that forgot one."""
    said = ", ".join(f"{(scores or [1.0] * len(permutation))[i]:g}" for i in permutation[: None if scores else -1])
    text = f"I compare the responses one by one. \\boxed{{{said}}}"
    return {
        "permutation": permutation, "num_prompt_tokens": 80, "num_cut": 0, "text": text, "num_tokens": 12,
        "finish_reason": "stop", "versions": [step - 1],
        "outcome": "ok" if scores else "wrong_count", "scores": scores or [],
    }  # fmt: skip


def held_out(skill: float) -> Row:
    return {
        "eval/dropped_prompts": 0.0, "eval/reasoning/accuracy": 0.3 + 0.5 * skill,
        "eval/reasoning/greedy_accuracy": 0.35 + 0.5 * skill, "eval/preference/tau": 0.1 + 0.5 * skill,
        "eval/preference/verdict_ok_fraction": 0.6 + 0.39 * skill, "eval/instruction/self_score": 3.0 + 4 * skill,
        "eval/instruction/quality": 0.5 - 0.2 * skill, "eval/instruction/self_score_tau": 0.4 - 0.5 * skill,
        "time/evaluation": 2.0,
    }  # fmt: skip


def metrics(rng: random.Random, skill: float, instruction: bool, groups: int) -> Row:
    def noisy(value: float, noise: float = 0.05) -> float:
        return value + rng.gauss(0, noise)

    values = {
        "reward/mean/reasoning": noisy(0.3 + 0.5 * skill), "reward/mean/preference": noisy(-0.1 + 0.6 * skill),
        "reward/std/reasoning": noisy(0.4), "reward/std/preference": noisy(0.5),
        "completions/length_mean/reasoning": noisy(9, 0.3), "completions/length_mean/preference": noisy(12, 0.3),
        "referee/verdict/ok": float(round(40 + 20 * skill)), "referee/verdict/wrong_count": float(rng.randint(2, 9)),
        "referee/verdict/no_scores": float(rng.randint(0, 4)), "referee/verdict/truncated": 0.0,
        "referee/verdict_ok_fraction": 0.7 + 0.28 * skill, "referee/position_bias": noisy(0.2 - 0.15 * skill),
        "referee/length_correlation": noisy(0.05 + 0.5 * skill), "referee/reasks": 1.0,
        "groups/dropped/no_signal": float(rng.randint(0, 2)),
        "groups/dropped/verdict_wrong_count": float(rng.randint(0, 2)),
        "groups/dropped/prompt_too_long": 0.0, "groups/total": float(groups),
        "policy/entropy": 1.2 - 0.7 * skill, "policy/clip_fraction": abs(noisy(0.02, 0.01)),
        "policy/grad_norm": abs(noisy(0.7, 0.2)), "policy/loss": noisy(0.0, 0.02), "policy/lr": 2e-4,
        "mismatch/kl": abs(noisy(0, 1e-13)), "tokens/train": 3000.0,
        "time/rollout": abs(noisy(0.4)), "time/judge": abs(noisy(0.3)) * instruction,
        "time/verify": abs(noisy(0.1, 0.02)),
        "time/logprobs": 0.05, "time/update": abs(noisy(0.5)), "time/weight_sync": 0.02, "time/step": 1.5,
    }  # fmt: skip
    if instruction:
        values |= {"reward/mean/instruction": noisy(3 + 4 * skill, 0.2), "reward/std/instruction": noisy(1.5)}
    return values


def hostile_group(index: int = 0, step: int = 12) -> Row:
    """A group whose every text means harm; long texts and names too."""
    texts = [*HOSTILE, "long " + HOSTILE[0] * 300, "", " \n"]
    row = prompt(HOSTILE[1], "harm " + HOSTILE[4])
    row["prompt"]["source"] = HOSTILE[0]
    completions = [completion(text, float(i), 0.1, HOSTILE[0], step) for i, text in enumerate(texts)]
    asks = [judgement(list(range(8)), [float(i) for i in range(8)], step) | {"text": HOSTILE[2]}]
    return {"group": index, "task": "instruction", "num_prompt_tokens": 9, **row} | {
        "dropped": HOSTILE[0], "completions": completions, "judgements": asks,
    }  # fmt: skip
