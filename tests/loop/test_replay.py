"""A kept batch runs again: the same numbers bit for bit, at another layout to rounding. What is kept, and how long."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from megatron_urpo.cli import main
from megatron_urpo.policy.parallel import close_parallel
from megatron_urpo.reporting.batches import Batches
from tests.loop.runs import CONFIG, environment, metrics, torchrun, train
from tests.support.miniature import ROOT, Miniature

STEPS = 4
EXACT = "as recorded (to the last digit)"


@pytest.fixture(scope="module")
def run(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after steps 2 and 4: steps 1 and 2 are replayed from the model folder, 3 and 4 from a checkpoint."""
    folder = tmp_path_factory.mktemp("replay") / "run"
    return train(miniature, folder, num_steps=STEPS, **{"checkpoint.every": 2})


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, the test's own to damage."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _leave_process_groups() -> Iterator[None]:
    yield
    close_parallel()


def replay(run: Path, step: int, *arguments: str) -> Result:
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, ["replay", str(run), "--step", str(step), *arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def refusal(run: Path, step: int, *arguments: str) -> str:
    result = replay(run, step, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    return line


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(output: str) -> dict[str, list[float]]:
    """Recorded and replayed value of each metric in the table."""
    rows = re.findall(r"^(\S+/\S+) +([\d.e+-]+) +([\d.e+-]+)", output, re.MULTILINE)
    return {name: [float(recorded), float(replayed)] for name, recorded, replayed in rows}


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_each_step_repeats_to_the_last_digit_and_nothing_is_written(run: Path, step: int) -> None:
    before = contents(run)
    result = replay(run, step)
    assert result.exit_code == 0, result.output
    start = "model folder" if step <= 2 else "step_000002"
    first = 1 if step <= 2 else 3
    assert f"from the {start}" in result.output or f"from {start}" in result.output
    for number in range(first, step + 1):
        assert f"step {number}: {EXACT}" in result.output
    recorded = metrics(run)[step]
    for name in ("policy/loss", "policy/grad_norm", "policy/entropy", "mismatch/kl", "tokens/train"):
        assert shown(result.output)[name] == [pytest.approx(recorded[name], rel=1e-7)] * 2  # eight digits are printed
    assert contents(run) == before


def test_another_digit_is_a_difference(copy: Path) -> None:
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[3]["policy/grad_norm"] = math.nextafter(lines[3]["policy/grad_norm"], math.inf)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = replay(copy, 4)
    assert result.exit_code == 0  # step 4 itself repeats; the step before it is told
    assert re.search(r"step 3: differs from the record: policy/grad_norm \d\.\de-1\d relative ", result.output)
    assert replay(copy, 3).exit_code == 1


def test_another_layout_agrees_to_rounding(run: Path) -> None:
    """Two updates at other orders of summation. The loss is a mean of terms of about 1 that cancel."""
    output = torchrun(2, "replay", str(run), "--step", "4", "--layout", "tensor=2,sequence=true")
    assert "tensor 2 x pipeline 1 x data 1" in output
    assert "step 4: as recorded (loss and gradient norm within 0.0001)" in output
    loss, grad_norm = shown(output)["policy/loss"], shown(output)["policy/grad_norm"]
    assert loss[1] == pytest.approx(loss[0], abs=1e-5)
    assert grad_norm[1] == pytest.approx(grad_norm[0], rel=1e-5)


def test_a_changed_value_gives_other_numbers(run: Path) -> None:
    result = replay(run, 4, "optimizer.lr=0.1")
    assert result.exit_code == 1
    assert "step 4: differs from the record: policy/" in result.output


def test_a_checkpoint_of_the_other_kind_of_optimizer_is_refused(run: Path) -> None:
    line = refusal(run, 4, "--layout", "distributed_optimizer=false")
    assert line.startswith("error: parallel.distributed_optimizer: false, and ")
    assert "step_000002 was saved with true" in line
    assert replay(run, 2, "--layout", "distributed_optimizer=false").exit_code == 0  # from the model folder


def test_batches_go_with_the_checkpoints_that_lead_to_them(miniature: Miniature, tmp_path: Path) -> None:
    run = train(miniature, tmp_path / "run", num_steps=STEPS, **{"checkpoint.every": 1, "checkpoint.keep_last": 2})
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_000003", "step_000004"]
    assert Batches(run).steps() == [4]
    assert f"step 4: {EXACT}" in replay(run, 4).output
    line = refusal(run, 2)
    assert line == "error: --step: 2 cannot be replayed (its batch is not kept); those that can: 4"


def test_a_resumed_run_is_replayed_under_the_config_of_each_step(miniature: Miniature, copy: Path) -> None:
    """It goes on from step 2 as another run: more steps, so another schedule, and another learning rate."""
    shutil.rmtree(copy / "checkpoints" / "step_000004")
    train(miniature, copy, num_steps=5, **{"checkpoint.every": 2, "checkpoint.keep_last": 9, "optimizer.lr": 1e-3})
    assert Batches(copy).steps() == [1, 2, 3, 4, 5]
    assert metrics(copy)[3]["policy/lr"] > 2 * metrics(copy)[2]["policy/lr"]
    for step in (2, 4, 5):
        assert f"step {step}: {EXACT}" in replay(copy, step).output


def test_a_damaged_batch_is_named_before_anything_starts(copy: Path) -> None:
    path = copy / "batches" / "step_000003.npz"
    path.write_bytes(path.read_bytes()[:-100])
    for step in (3, 4):
        assert refusal(copy, step).startswith(f"error: {path}: is not a whole batch file; it is damaged")
    assert replay(copy, 2).exit_code == 0


def test_a_gradient_that_is_not_finite_is_traced_to_its_sample(copy: Path) -> None:
    kept = Batches(copy)
    batch = kept.read(3)
    samples = list(batch.samples)
    samples[5] = replace(samples[5], advantage=math.inf)
    kept.write(3, samples, batch.origin)
    kept.settle(3, not_finite=True, keep=True)
    result = replay(copy, 3)
    assert result.exit_code == 1
    assert shown(result.output)["policy/not_finite"] == [0, 1]
    group, task = samples[5].group, samples[5].task
    assert f"sample 5 alone gives a gradient that is not finite: group {group} ({task})" in result.output
    assert "advantage inf, rollout log-probabilities finite" in result.output


def test_a_run_that_dies_in_its_update_leaves_the_batch_behind(miniature: Miniature, tmp_path: Path) -> None:
    """Also where batches are not kept: this one goes only once its step is done."""
    run = tmp_path / "run"
    overrides = miniature.overrides(run, num_steps=STEPS, **{"checkpoint.keep_batches": "false"})
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_urpo.cli", "train", str(CONFIG), *overrides],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (run / "batches" / "step_000001.npz").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [line["step"] for line in metrics(run)] == [0]
    result = replay(run, 1)
    assert result.exit_code == 0
    assert "step 1: metrics.jsonl has no line of this step" in result.output
    (grad_norm,) = re.findall(r"^policy/grad_norm +(\S+)$", result.output, re.MULTILINE)
    assert float(grad_norm) > 0
