"""Puts one-line faults into a copy of the package, one at a time, and names the test that catches each.

    python scripts/mutation_check.py > docs/measurements/mutations.md

Exit code 1 where a fault stays unnoticed. Run it in the project's environment (`source .venv/bin/activate`).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """`before` occurs once in `file` (under megatron_urpo/) and becomes `after`; `tests` (under tests/) run."""

    name: str
    file: str
    before: str
    after: str
    tests: str


# ruff: noqa: E501 -- a fault a line
FAULTS = (
    Fault("normalise over the batch", "algorithm/advantages.py", "rewards[index] for index in indices", "r for r in rewards", "unit/algorithm"),
    Fault("sample's standard deviation", "algorithm/advantages.py", "for value in values) / len(values))", "for value in values) / (len(values) - 1))", "unit/algorithm"),
    Fault("clip sides swapped", "algorithm/losses.py", "clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_high, 1 + clip_low)", "unit/algorithm"),
    Fault("the better of plain and clipped", "algorithm/losses.py", "torch.minimum", "torch.maximum", "unit/algorithm"),
    Fault("gradient descent on the objective", "algorithm/losses.py", "loss = -(weights_T", "loss = (weights_T", "unit/algorithm"),
    Fault("denominators swapped", "algorithm/losses.py", 'normalization == "tokens"', 'normalization != "tokens"', "unit/algorithm"),
    Fault("KL the other way round", "algorithm/losses.py", "reference_logprobs_T.detach() - logprobs_T", "logprobs_T - reference_logprobs_T.detach()", "unit/algorithm"),
    Fault("importance weight not truncated", "algorithm/corrections.py", ".exp().clamp(max=cap)", ".exp()", "unit/algorithm"),
    Fault("weights of another sequence", "algorithm/corrections.py", "0.0)[index_R]", "0.0)[index_R.flip(0)]", "unit/algorithm"),
    Fault("targets off by one", "policy/packing.py", "int(start) + sequence.first_target - 1, int(start) + sequence.num_input_tokens", "int(start) + sequence.first_target - 2, int(start) + sequence.num_input_tokens - 1", "unit/policy/test_packing.py"),
    Fault("permutation not undone", "rollout/verdict.py", "zip(permutation, scores, strict=True)", "enumerate(scores)", "unit/rollout"),
    Fault("first box instead of last", "rollout/verdict.py", "start = match.end()", "start = start or match.end()", "unit/rollout"),
    Fault("more scores than candidates", "rollout/verdict.py", "len(items) != count", "len(items) < count", "unit/rollout"),
    Fault("cut-off verdict is read", "rollout/verdict.py", 'finish_reason != "stop"', 'finish_reason == "abort"', "unit/rollout"),
    Fault("ends of the score range left out", "rollout/verdict.py", "low <= score <= high", "low < score < high", "unit/rollout"),
    Fault("candidates shown in inverse order", "rollout/scoring_prompt.py", "self._neutralise(responses[candidate]) for candidate in permutation", "self._neutralise(responses[permutation.index(k)]) for k in range(len(responses))", "unit/rollout"),
    Fault("shares of the first for all", "rollout/scoring_prompt.py", "(len(lengths) - done)", "len(lengths)", "unit/rollout"),
    Fault("a group of equal rewards is trained on", "rollout/samples.py", "if reward is not None}) > 1", "if reward is not None}) > 0", "unit/rollout"),
    Fault("ties agree", "reward/preference.py", "return (a > b) - (a < b)", "return (a >= b) - (a < b)", "unit/reward/test_preference_reward.py"),
    Fault("unreadable verdict earns 0", "reward/preference.py", "UNREADABLE_REWARD = -1.0", "UNREADABLE_REWARD = 0.0", "unit/reward/test_preference_reward.py"),
    Fault("tau over N * N", "reward/preference.py", "(len(gold) * (len(gold) - 1))", "(len(gold) * len(gold))", "unit/reward/test_preference_reward.py"),
    Fault("ranks reversed", "reward/self_scored.py", "other < score for", "other > score for", "unit/reward/test_self_scored.py"),
    Fault("residual of the prompt before", "data/mixture.py", "shares[task] * (drawn + 1)", "shares[task] * drawn", "unit/data"),
    Fault("every epoch in the same order", "data/stream.py", "{self._seed}/{pool}/{epoch}", "{self._seed}/{pool}", "unit/data"),
    Fault("phase lasts a step too long", "data/stream.py", "step < phase.until", "step <= phase.until", "unit/data"),
    Fault("micro-batch one token above the cap", "algorithm/microbatches.py", "rooms[open_bins[0][1]] < lengths[sample]", "rooms[open_bins[0][1]] + 1 < lengths[sample]", "unit/algorithm"),
    Fault("ranks with unequal counts", "algorithm/microbatches.py", "num_bins += num_ranks", "num_bins += 1", "unit/algorithm"),
    Fault("ranks dealt in one order", "algorithm/microbatches.py", "loads[rank] += cost", "loads[rank] += 0", "unit/algorithm"),
    Fault("pickles of a checkpoint not checked", "policy/checkpoint.py", "    check_pickles(folder)", "    pass", "loop/test_damaged.py"),
    Fault("pickles may ask for anything", "policy/weights/torch_pickle.py", 'raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of the format")', "return super().find_class(module, name)", "unit/policy/test_check_pickles.py"),
    Fault("objects in parts not checked", "policy/safe_pickle.py", "_check_object(file, place.offset, place.length)", "pass", "unit/policy/test_check_pickles.py"),
    Fault("a checkpoint's checksums not compared", "checkpoints/state.py", "check_contents(folder, manifest,", "(folder, manifest,", "loop/test_damaged.py"),
    Fault("the one before taken for whole", "checkpoints/manifest.py", "check_contents(other, manifest, manifest.files)", "pass", "loop/test_damaged.py"),
    Fault("a checkpoint of step 0", "checkpoints/saving.py", "state.step == self._saved", "state.step == self._saved > 0", "unit/checkpoints/test_saving.py"),
    Fault("one checkpoint less than asked for", "checkpoints/saving.py", "[: -checkpoint.keep_last]", "[: len(kept) + 1 - checkpoint.keep_last]", "unit/checkpoints/test_saving.py"),
    Fault("moments of the optimizer not loaded", "policy/checkpoint.py", 'optimizer.load_state_dict(state["optimizer"])', "optimizer.reload_model_params()", "unit/checkpoints/test_saving.py"),
    Fault("a model that is never freed", "policy/optimizer.py", "return get_megatron_optimizer(config, [model])", "model.config.grad_scale_func = (optimizer := get_megatron_optimizer(config, [model])).scale_loss; return optimizer", "unit/policy/test_policy.py"),
    Fault("one count of steps for all parameters", "policy/checkpoint.py", "    _give_each_its_step(policy.optimizer)", "    pass", "unit/checkpoints/test_saving.py"),
    Fault("schedule starts anew", "policy/checkpoint.py", 'policy.scheduler.load_state_dict(state["scheduler"])', "pass", "unit/checkpoints/test_saving.py"),
)  # fmt: skip


def main() -> int:
    unnoticed = 0
    print("# Faults and the tests that catch them\n")
    print("One-line faults, each put into a copy of the package by `scripts/mutation_check.py`.\n")
    print("| fault | file | caught by |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("megatron_urpo", "tests", "examples", "scripts"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for fault in FAULTS:
            caught = catching_test(copy, fault)
            unnoticed += caught is None
            print(f"| {fault.name} | `{fault.file}` | {f'`{caught}`' if caught else '**nothing**'} |", flush=True)
    print(f"\n{len(FAULTS) - unnoticed} of {len(FAULTS)} caught.")
    return int(unnoticed > 0)


def catching_test(copy: Path, fault: Fault) -> str | None:
    """The first test that fails with the fault in place; None where all pass."""
    file = copy / "megatron_urpo" / fault.file
    text = file.read_text()
    if text.count(fault.before) != 1:
        raise SystemExit(f"{fault.file}: {fault.before!r} occurs {text.count(fault.before)} times; it must occur once")
    file.write_text(text.replace(fault.before, fault.after))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{fault.tests}"]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    finally:
        file.write_text(text)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/(?:unit/)?)?([\w/.:]+)", done.stdout, re.MULTILINE)
    if failed is None:
        raise SystemExit(f"{fault.name}: pytest ended with {done.returncode} and no failed test\n{done.stdout[-2000:]}")
    return failed[1]


if __name__ == "__main__":
    sys.exit(main())
