"""The whole objective on a real model against transformers and a loop over tokens: KL, weights, parts by task."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.packing import TokenSequence, pack
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import task_grad_norms, update
from megatron_urpo.policy.update_metrics import task_shares
from megatron_urpo.types import TASKS, Sample
from tests.support.models import make_model

LOW, HIGH = 0.2, 0.28


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model")
    make_model(target, "qwen3")
    return target


def make_policy(folder: Path, parallel: Parallel, **optimizer: Any) -> Policy:
    settings = OptimizerConfig(**{"lr": 1e-2, "schedule": "constant", "clip_grad": 0.0, **optimizer})
    model = ModelConfig(path=folder, dtype="float32")
    return build_policy(model, settings, ParallelConfig(), parallel, 10, 1, with_reference=True)


def make_samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(5)
    samples = []
    for group, task in enumerate(TASKS):
        for i in range(3):
            ids = torch.randint(0, 127, (6 + 2 * i + group,), generator=generator).tolist()
            # A random model of 127 words is near -log 127 = -4.84: these give weights on both sides of 1.
            rollout = (-4.84 + torch.randn(len(ids) - 4, generator=generator) / 2).tolist()
            samples.append(Sample(group, task, tuple(ids[:4]), tuple(ids[4:]), (-1.2, 0.2, 1.0)[i], tuple(rollout)))
    return samples


def completion_logprobs(model: Any, sample: Sample) -> torch.Tensor:
    ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
    logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[len(sample.prompt_ids) - 1 :]


def naive_loss(
    model: Any, start: Any, samples: list[Sample], count: int, beta: float, weigh: str, cap: float
) -> torch.Tensor:
    """The objective, one token after the other; `start` has the weights the samples are taken to come from."""
    total = torch.zeros(())
    for sample in samples:
        new = completion_logprobs(model, sample)
        old = completion_logprobs(start, sample).detach()
        gaps = [float(old[t]) - sample.rollout_logprobs[t] for t in range(len(old))]
        for t in range(len(new)):
            weight = {"none": 1.0, "token_tis": min(math.exp(gaps[t]), cap)}.get(weigh)
            if weight is None:
                weight = math.exp(sum(gaps)) if math.exp(sum(gaps)) <= cap else 0.0
            ratio = (new[t] - old[t]).exp()
            cut_off = float(ratio.detach()) > 1 + HIGH if sample.advantage > 0 else float(ratio.detach()) < 1 - LOW
            worst = sample.advantage * (min(max(float(ratio.detach()), 1 - LOW), 1 + HIGH) if cut_off else ratio)
            reference = old[t]  # the reference is what the run began with, and so are these samples' weights
            total = total - weight * worst + beta * ((reference - new[t]).exp() - 1 - (reference - new[t]))
    return total / count


def norm_of(loss: torch.Tensor, model: Any) -> float:
    model.zero_grad()
    loss.backward()
    return math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None))


@pytest.mark.parametrize("weigh", ["none", "token_tis", "sequence_mis"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_second_gradient_equals_a_loop_over_tokens(folder: Path, parallel: Parallel, weigh: str, beta: float) -> None:
    """The first epoch's ratio is 1 and its KL is 0; the second, after a step, shows everything.

    Sums of a few hundred float32 terms on both sides, and one AdamW step in between: 1e-4.
    """
    samples = make_samples()
    policy = make_policy(folder, parallel)
    loss = LossConfig(epochs=1, kl_coefficient=beta, rollout_correction=weigh, rollout_correction_cap=1.5)
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    moved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    count = sum(len(sample.completion_ids) for sample in samples)
    want = [norm_of(naive_loss(start, start, samples, count, beta, weigh, 1.5), start)]
    first = update(policy, samples, loss)
    moved.load_state_dict(dict(policy.export()), strict=False)
    want.append(norm_of(naive_loss(moved, start, samples, count, beta, weigh, 1.5), moved))
    # Two epochs from the start: the mean norm of both, the second at the weights that the first made.
    both = update(make_policy(folder, parallel), samples, loss.model_copy(update={"epochs": 2}))
    assert first["policy/grad_norm"] == pytest.approx(want[0], rel=1e-4)
    assert 2 * both["policy/grad_norm"] - want[0] == pytest.approx(want[1], rel=1e-4)
    assert (both.get("policy/kl_reference", 0.0) > 1e-4) == (beta > 0)


def test_weights_are_reported(folder: Path, parallel: Parallel) -> None:
    policy = make_policy(folder, parallel)
    means = {
        weigh: update(policy, make_samples(), LossConfig(epochs=1, rollout_correction=weigh, rollout_correction_cap=1))
        for weigh in ("none", "token_tis", "sequence_mis")
    }
    assert means["none"]["mismatch/weight_mean"] == 1.0
    assert 0.3 < means["token_tis"]["mismatch/weight_mean"] < 1.0
    assert means["token_tis"]["mismatch/masked_fraction"] == 0.0
    assert 0.0 < means["sequence_mis"]["mismatch/masked_fraction"] < 1.0
    worst = max(means["none"][f"mismatch/max/{task}"] for task in TASKS)
    assert means["none"]["mismatch/max"] == worst > 0


def test_the_reference_stays_while_the_policy_moves(folder: Path, parallel: Parallel) -> None:
    policy = make_policy(folder, parallel)
    start = {name: tensor.clone() for name, tensor in policy.reference.parameters.items()}
    update(policy, make_samples(), LossConfig(epochs=2, kl_coefficient=0.1))
    for name, tensor in policy.reference.parameters.items():
        assert torch.equal(tensor, start[name]), name
    assert any(not torch.equal(tensor, start[name]) for name, tensor in policy.part.parameters.items())


@pytest.mark.parametrize("normalization", ["tokens", "responses"])
def test_gradient_norm_of_each_task(folder: Path, parallel: Parallel, normalization: str) -> None:
    """Divided by the whole batch's count, so that the tasks' gradients add up to the batch's."""
    samples = make_samples()
    policy = make_policy(folder, parallel)
    before = {name: tensor.clone() for name, tensor in policy.part.parameters.items()}
    got = task_grad_norms(policy, samples, LossConfig(normalization=normalization))
    count = sum(len(sample.completion_ids) for sample in samples) if normalization == "tokens" else len(samples)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for task in TASKS:
        members = [sample for sample in samples if sample.task == task]
        want = norm_of(naive_loss(model, model, members, count, 0.0, "none", 2.0), model)
        assert got[f"policy/grad_norm/{task}"] == pytest.approx(want, rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.part.parameters.items())


def test_measuring_tasks_changes_nothing(folder: Path, parallel: Parallel) -> None:
    weights = []
    for measure in (False, True):
        policy = make_policy(folder, parallel)
        metrics = update(policy, make_samples(), LossConfig(epochs=2), measure)
        assert ("policy/grad_norm/reasoning" in metrics) == measure
        weights.append(dict(policy.export()))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_log_probabilities_at_the_temperature_of_the_rollout(folder: Path, parallel: Parallel) -> None:
    """An engine that samples at 0.7 reports log softmax(logits / 0.7); so must the trainer that compares with it."""
    policy = make_policy(folder, parallel)
    policy.temperature = 0.7
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sample = make_samples()[0]
    ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
    logits = model(ids).logits[0, :-1].detach() / 0.7
    want = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0][len(sample.prompt_ids) - 1 :]
    row = TokenSequence(ids[0].tolist(), len(sample.prompt_ids))
    (got,) = policy.logprobs([pack([row], 1, parallel.device)])
    assert (got - want).abs().max() < 5e-6  # float32 logits of size 10 on both sides


def test_shares_by_hand() -> None:
    samples = [
        Sample(0, "reasoning", (1,), (2, 3, 4), 1.0, (0.0,) * 3),
        Sample(0, "reasoning", (1,), (2,), -2.0, (0.0,)),
        Sample(1, "instruction", (1,), (2,) * 4, 0.5, (0.0,) * 4),
    ]
    assert task_shares(samples) == {
        "tokens/share/reasoning": 0.5,
        "tokens/share/instruction": 0.5,
        "loss/share/reasoning": 5 / 7,
        "loss/share/instruction": 2 / 7,
    }
