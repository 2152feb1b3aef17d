"""The policy's training step against plain torch: AdamW, clipping, schedule, accumulation, bf16 with fp32 masters."""

import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.schema import LossConfig
from megatron_urpo.policy.objective import GrpoLoss
from megatron_urpo.policy.packing import PackedBatch, TokenSequence, pack
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import VALUES, update
from megatron_urpo.types import Sample
from tests.support.models import make_model

ROWS = [torch.randint(0, 127, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 30, 4, 17)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, "qwen3")
    return folder


def make_policy(folder: Path, parallel: Parallel, dtype: str = "float32", **optimizer: float | str) -> Policy:
    layout = ParallelConfig()
    model = ModelConfig(path=folder, dtype=dtype)
    return build_policy(model, OptimizerConfig(**optimizer), layout, parallel, 10, 1)


def test_nothing_is_written_into_the_log(
    model_folder: Path, parallel: Parallel, caplog: pytest.LogCaptureFixture
) -> None:
    """megatron-core warns layer by layer of what it does not know."""
    make_policy(model_folder, parallel)
    assert caplog.messages == []


def mean_nll(logprobs: torch.Tensor, _: torch.Tensor, __: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
    return -logprobs.sum() / sum(len(row) - 1 for row in ROWS), {}


def sequences() -> list[TokenSequence]:
    return [TokenSequence(row, 1) for row in ROWS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_that_nobody_uses_is_freed(model_folder: Path, parallel: Parallel, dtype: str) -> None:
    """What is not holds its process groups too, whose threads wake a hundred times a second each."""
    policy = make_policy(model_folder, parallel, dtype)
    policy.forward_backward([pack(sequences(), 1, parallel.device)], mean_nll)
    policy.step()
    module = weakref.ref(policy.part.module)
    del policy
    gc.collect()
    assert module() is None


def test_three_steps_equal_torch_adamw(model_folder: Path, parallel: Parallel) -> None:
    """Same loss, clipped gradients, decay on matrices only. One micro-batch there, four sequences here.

    Adam divides by the root of the squared gradient plus eps. Gradients of both sides agree within about 1e-7, so with
    eps = 1e-4 three steps of 1e-3 agree within 3 * 1e-3 * 1e-7 / 1e-4 = 3e-6; with the usual 1e-8 the rounding of a
    gradient near zero could be blown up to the size of a whole step.
    """
    policy = make_policy(
        model_folder, parallel, lr=1e-3, schedule="constant", weight_decay=0.1, clip_grad=0.5, eps=1e-4
    )
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    matrices = [p for p in reference.parameters() if p.dim() > 1]
    vectors = [p for p in reference.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-4)
    for _ in range(3):
        policy.forward_backward([pack(sequences(), 1, parallel.device)], mean_nll)
        grad_norm = policy.step()
        optimizer.zero_grad()
        for row in ROWS:
            ids = torch.tensor([row])
            logprobs = torch.log_softmax(reference(ids).logits[0, :-1], -1)
            (-logprobs.gather(1, ids[0, 1:, None]).sum() / sum(len(r) - 1 for r in ROWS)).backward()
        want = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        assert grad_norm == pytest.approx(float(want), rel=1e-5)
    state = reference.state_dict()
    for name, tensor in policy.export():
        assert (tensor - state[name]).abs().max() < 3e-6, name


def test_micro_batches_accumulate(model_folder: Path, parallel: Parallel) -> None:
    norms = []
    for parts in ([sequences()], [[s] for s in sequences()], [sequences()[:1], [], sequences()[1:]]):
        policy = make_policy(model_folder, parallel)
        policy.forward_backward([pack(part, 1, parallel.device) for part in parts], mean_nll)
        norms.append(policy.step())
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert norms[2] == pytest.approx(norms[0], rel=1e-5)  # a micro-batch of padding adds nothing


def test_schedule_warms_up_and_decays_by_a_cosine(model_folder: Path, parallel: Parallel) -> None:
    policy = make_policy(model_folder, parallel, lr=1.0, min_lr=0.1, warmup_steps=2)
    rates = []
    for _ in range(10):
        rates.append(policy.learning_rate)
        policy.skip_updates(1)
    assert rates[0] > 0
    assert rates[:3] == sorted(rates[:3])
    assert rates[2] == pytest.approx(1.0)
    for step in (4, 6, 8):
        assert rates[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (step - 2) / 8)))


def test_bf16_keeps_small_updates_in_fp32_masters(model_folder: Path, parallel: Parallel) -> None:
    """A step of 1e-5 is far below bf16's resolution of a weight of 0.1 (2**-11): only masters can add such steps up."""
    policy = make_policy(model_folder, parallel, dtype="bfloat16", lr=1e-5, schedule="constant", weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in policy.export()}
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    changed = []
    for _ in range(60):
        policy.forward_backward([pack(sequences(), 1, parallel.device)], mean_nll)
        policy.step()
        name = "model.layers.0.mlp.down_proj.weight"
        changed.append(float((dict(policy.export())[name] != before[name]).float().mean()))
    assert changed[0] < 0.1
    assert changed[-1] > 5 * changed[0]


def make_samples(num_groups: int = 4) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 127, (count,), generator=generator).tolist())

    return [
        Sample(group, "reasoning", ids(5), ids(3 + i), 1.0 if i % 2 else -1.0, (-4.8,) * (3 + i))
        for group in range(num_groups)
        for i in range(4)
    ]


def test_update_moves_towards_good_completions(model_folder: Path, parallel: Parallel) -> None:
    policy = make_policy(model_folder, parallel, lr=1e-3)
    samples = make_samples()

    def mean_logprobs() -> tuple[float, float]:
        sides: dict[bool, list[float]] = {True: [], False: []}
        for sample in samples:
            row = TokenSequence((*sample.prompt_ids, *sample.completion_ids), len(sample.prompt_ids))
            (logprobs,) = policy.logprobs([pack([row], 1, parallel.device)])
            sides[sample.advantage > 0].append(float(logprobs.mean()))
        return sum(sides[True]) / len(sides[True]), sum(sides[False]) / len(sides[False])

    good, bad = mean_logprobs()
    metrics = update(policy, samples, LossConfig(epochs=3))
    new_good, new_bad = mean_logprobs()
    assert new_good - new_bad > good - bad + 0.05
    assert metrics["tokens/train"] == sum(sample.num_tokens - 1 for sample in samples)
    assert metrics["policy/grad_norm"] > 0
    assert metrics["mismatch/max"] > 0.1  # these rollout log-probabilities are invented


def test_mini_batches_see_the_log_probabilities_of_the_rollout_policy(model_folder: Path, parallel: Parallel) -> None:
    """The second mini-batch is reached after the weights have moved; its old log-probabilities must not have.

    mismatch/kl compares old with rollout log-probabilities: with the same old ones it does not depend on the split.
    """
    values = []
    for minibatches in (1, 4):
        policy = make_policy(model_folder, parallel, lr=1e-2)
        values.append(update(policy, make_samples(), LossConfig(epochs=1, minibatches=minibatches)))
    assert values[1]["mismatch/kl"] == pytest.approx(values[0]["mismatch/kl"], rel=1e-5)
    assert values[0]["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert abs(values[1]["policy/ratio_mean"] - 1.0) > 1e-3


def test_fewer_samples_than_data_parallel_ranks(model_folder: Path, parallel: Parallel) -> None:
    """A rank without a sample runs a micro-batch of padding through the same loss."""
    policy = make_policy(model_folder, parallel, lr=1.0)
    before = {name: tensor.clone() for name, tensor in policy.export()}
    loss = GrpoLoss(LossConfig(), 7)
    sums = policy.forward_backward([pack([], 4, parallel.device, VALUES)], loss)
    assert sums["tokens"] == 0
    assert policy.step() == 0.0
    for name, tensor in policy.export():
        assert (tensor - before[name]).abs().max() <= 0.011 * before[name].abs().max()  # weight decay of 1% alone


def test_a_gradient_that_is_not_finite_changes_nothing(model_folder: Path, parallel: Parallel) -> None:
    policy = make_policy(model_folder, parallel, lr=1e-2)
    before = {name: tensor.clone() for name, tensor in policy.export()}
    samples = make_samples()
    samples[3] = replace(samples[3], advantage=math.nan)
    metrics = update(policy, samples, LossConfig(epochs=3))
    assert metrics["policy/not_finite"] == 1.0
    for name, tensor in policy.export():
        assert torch.equal(tensor, before[name]), name
    healthy = update(policy, make_samples(), LossConfig(epochs=3))
    assert healthy["policy/not_finite"] == 0.0
    assert math.isfinite(healthy["policy/grad_norm"])
    assert all(tensor.isfinite().all() for _, tensor in policy.export())


def test_nothing_to_learn_still_advances_the_schedule(model_folder: Path, parallel: Parallel) -> None:
    policy = make_policy(model_folder, parallel, lr=1.0)
    start = policy.learning_rate
    metrics = update(policy, [], LossConfig(epochs=2))
    assert metrics["policy/lr"] == policy.learning_rate < start
    assert "policy/grad_norm" not in metrics
