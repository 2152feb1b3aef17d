"""One table: at every layout a training step is the step of one rank that packs nothing.

Each row trains one model on 11 samples of all three tasks through `policy.update`, in float32 over gloo. Its losses,
every gradient of every step as whole Hugging Face tensors, and the weights after the last step are compared with those
of one rank that runs one sequence a micro-batch and recomputes nothing.

Tolerance: 1e-5 of the largest number of the same tensor of the reference. Layouts add up the same numbers in another
order, so an element is off by rounding of the terms that went into it, whose size is the tensor's, not the element's.

Weights: Adam turns a gradient g into a step of lr * m / (sqrt(v) + eps), whose derivative in g is at most lr / eps or
so (and is that where g is near 0): a gradient that is off by 1e-5 of its largest number G moves a weight by up to
1e-5 * G * lr / eps. With the usual eps of 1e-8 the rounding of a gradient near 0 would turn whole steps around. Here
lr / eps = 1/3 and clipping keeps G small, so that all steps together stay below 1e-5 of the tensor's largest weight:
what passes as a gradient passes as a weight, and more is a fault of the optimizer. That this holds for every tensor,
and that weights move far more than is tolerated, is what `test_the_reference_is_worth_comparing_with` is for.
"""

import json
import math
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from megatron_urpo.types import TASKS, Sample
from tests.distributed.launch import run_worlds
from tests.support.models import DENSE, make_model

TOLERANCE = 1e-5
COMPARED = ("policy/loss", "policy/grad_norm", "policy/entropy", "policy/clip_fraction", "policy/ratio_mean")
OPTIMIZER: dict[str, Any] = {"lr": 1e-3, "eps": 3e-3, "schedule": "constant", "weight_decay": 0.1, "clip_grad": 0.5}

# Name: (ranks, values of `parallel`). Ranks that are left over are data-parallel.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tensor 2": (2, {"tensor": 2}),
    "tensor 2, sequence": (2, {"tensor": 2, "sequence": True}),
    "pipeline 2": (2, {"pipeline": 2}),
    "data 2": (2, {"distributed_optimizer": False}),
    "data 2, sharded optimizer": (2, {"distributed_optimizer": True}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "tensor 2 x pipeline 2, sequence": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "tensor 2 x data 2, sequence": (4, {"tensor": 2, "sequence": True}),
    "pipeline 2 x data 2": (4, {"pipeline": 2}),
}
# Tokens that a micro-batch may hold. Samples have 21 to 40, so two never fit into 41 (of which sequence parallelism
# keeps one for its padding), and all fit into 4,096.
PLANS = {"unpacked": 41, "two or three": 100, "all": 4096}
RECOMPUTE = ("none", "selective", "full")
# Every three variants that follow each other have every plan and every kind of recomputation; all nine have all pairs.
VARIANTS = [(RECOMPUTE[k % 3], list(PLANS)[(k + k // 3) % 3]) for k in range(9)]
# Name: (calls of `update`, values of `loss`). `off policy` clips tokens in its first step already; the others take four
# optimizer steps over two mini-batches in one call, `corrected` with KL and importance weights of tokens (that of a
# sequence is a product over tokens and multiplies what their log-probabilities are off by).
OBJECTIVES: dict[str, tuple[int, dict[str, Any]]] = {
    "off policy": (3, {"epochs": 1, "old_logprobs": "rollout"}),
    "epochs": (1, {"epochs": 2, "minibatches": 2, "normalization": "responses"}),
    "corrected": (1, {"epochs": 2, "minibatches": 2, "kl_coefficient": 0.5, "rollout_correction": "token_tis"}),
}
MODELS = [f"{family}{', tied' * tied}" for family, tied in product(DENSE, (False, True))]
SAMPLES_OF_GROUPS = (4, 3, 1, 3)  # masked completions leave groups of different sizes


@dataclass(frozen=True)
class Row:
    layout: str
    model: str
    recompute: str
    plan: str
    objective: str

    def __str__(self) -> str:
        return " - ".join((self.layout, self.model, self.recompute, self.plan, self.objective))

    @property
    def reference(self) -> "Row":
        return Row("one", self.model, "none", "unpacked", self.objective)


ROWS = [
    Row(layout, model, *VARIANTS[(6 * i + j) % 9], list(OBJECTIVES)[(i + j // 2) % 3])
    for i, layout in enumerate(LAYOUTS)
    for j, model in enumerate(MODELS)
]
per_row = pytest.mark.parametrize("row", ROWS, ids=str)


class Table:
    """What came out of the rows; those on as many ranks are launched together when the first of them is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results: dict[Row, dict[str, Any]] = {}
        self.launched: set[int] = set()

    def result(self, row: Row) -> dict[str, Any]:
        if row not in self.results:
            ranks = shape_of(row)[0]
            assert ranks not in self.launched, "its ranks failed: the first test that asked for them says how"
            self.launched.add(ranks)
            shapes: dict[tuple[int, int, int], list[Row]] = {}
            for other in dict.fromkeys((*ROWS, *(row.reference for row in ROWS))):
                if shape_of(other)[0] == ranks:
                    shapes.setdefault(shape_of(other), []).append(other)
            worlds = [(ranks, self.place(rows[0]), ()) for rows in shapes.values()]
            for (_, tensor, pipeline), rows in shapes.items():
                jobs = {str(other): job(other, self.folder) for other in rows}
                everything = {"tensor": tensor, "pipeline": pipeline, "optimizer": OPTIMIZER, "rows": jobs}
                self.place(rows[0]).mkdir()
                (self.place(rows[0]) / "job.json").write_text(json.dumps(everything))
            found = run_worlds("worker_layout_table", worlds)
            for rows, result in zip(shapes.values(), found, strict=True):
                self.results |= {other: result[str(other)] for other in rows}
        return self.results[row]

    def place(self, row: Row) -> Path:
        """Its ranks' folder."""
        return self.folder / "ranks {} tensor {} pipeline {}".format(*shape_of(row))

    def metrics(self, row: Row) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = self.result(row)["metrics"]
        return metrics

    def tensors(self, row: Row, kind: str) -> dict[str, Tensor]:
        """Those of `row` whose name begins with `kind`: `grad` or `weight`."""
        self.result(row)
        tensors = load_file(self.place(row) / f"{row}.safetensors")
        return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}

    def gaps(self, row: Row, kind: str) -> dict[str, float]:
        """Largest difference from the reference by tensor, relative to the largest number of the reference's."""
        got, want = self.tensors(row, kind), self.tensors(row.reference, kind)
        assert set(got) == set(want)
        return {name: float((got[name] - want[name]).abs().max() / want[name].abs().max()) for name in want}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("table")
    for seed, name in enumerate(MODELS):
        family, _, tied = name.partition(", ")
        model = make_model(folder / name, family, tied=bool(tied), seed=seed)
        (folder / name / "samples.json").write_text(json.dumps([asdict(sample) for sample in make_samples(model)]))
    return Table(folder)


def shape_of(row: Row) -> tuple[int, int, int]:
    """(ranks, tensor, pipeline)"""
    ranks, layout = LAYOUTS[row.layout]
    return ranks, layout.get("tensor", 1), layout.get("pipeline", 1)


def job(row: Row, folder: Path) -> dict[str, Any]:
    updates, loss = OBJECTIVES[row.objective]
    return {
        "model": str(folder / row.model),
        "layout": {**LAYOUTS[row.layout][1], "recompute": row.recompute},
        "loss": {**loss, "max_tokens_per_micro_batch": PLANS[row.plan]},
        "updates": updates,
    }


def make_samples(model: PreTrainedModel) -> list[Sample]:
    """Advantages of both signs; the rollout's log-probabilities are the model's own, off by about 0.25 a token."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> list[int]:
        return torch.randint(0, model.config.vocab_size, (count,), generator=generator).tolist()

    samples = []
    for group, size in enumerate(SAMPLES_OF_GROUPS):
        prompt = ids(6 + 6 * group)
        for _ in range(size):
            total = int(torch.randint(max(22, len(prompt) + 1), 42, (1,), generator=generator))
            completion = ids(total - len(prompt))
            with torch.no_grad():
                logprobs = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0, :-1], -1)
            own = logprobs.gather(1, torch.tensor([prompt + completion])[0, 1:, None])[len(prompt) - 1 :, 0]
            noise = 0.25 * torch.randn(len(completion), generator=generator)
            advantage = float(torch.randn((), generator=generator))
            samples.append(
                Sample(
                    group, TASKS[group % 3], tuple(prompt), tuple(completion), advantage, tuple((own + noise).tolist())
                )
            )
    return samples


@per_row
def test_same_loss(table: Table, row: Row) -> None:
    for got, want in zip(table.metrics(row), table.metrics(row.reference), strict=True):
        for name in COMPARED:
            assert got[name] == pytest.approx(want[name], rel=TOLERANCE), name


@per_row
def test_same_gradients(table: Table, row: Row) -> None:
    assert {name: gap for name, gap in table.gaps(row, "grad").items() if not gap < TOLERANCE} == {}


@per_row
def test_same_weights(table: Table, row: Row) -> None:
    assert {name: gap for name, gap in table.gaps(row, "weight").items() if not gap < TOLERANCE} == {}


@per_row
def test_ranks_that_hold_the_same_weight_agree(table: Table, row: Row) -> None:
    assert table.result(row)["replica_gap"] < TOLERANCE


@pytest.mark.parametrize("row", dict.fromkeys(row.reference for row in ROWS), ids=str)
def test_the_reference_is_worth_comparing_with(table: Table, row: Row) -> None:
    """One sequence a micro-batch, a clip that bites, and an optimizer as the head of this file says."""
    first = table.metrics(row)[0]
    assert first["batch/micro_batches"] == sum(SAMPLES_OF_GROUPS)
    assert first["policy/clip_fraction"] > (0.05 if row.objective == "off policy" else 0)
    start = load_file(table.folder / row.model / "model.safetensors")
    weights, gradients = table.tensors(row, "weight"), table.tensors(row, "grad")
    steps = [
        {name.split("/")[2]: gradient for name, gradient in gradients.items() if name.startswith(f"grad/{step}/")}
        for step in range(len(gradients) // len(weights))
    ]
    norms = [math.sqrt(sum(float(x.double().square().sum()) for x in step.values())) for step in steps]
    assert min(norms) > OPTIMIZER["clip_grad"]
    for name, before in start.items():
        largest = float(before.abs().max())
        moved = float((weights[f"weight/{name}"] - before).abs().max())
        assert moved > 50 * TOLERANCE * largest, name
        clipped = [
            float(step[name].abs().max()) * OPTIMIZER["clip_grad"] / norm
            for step, norm in zip(steps, norms, strict=True)
        ]
        assert 0 < sum(clipped) * OPTIMIZER["lr"] / OPTIMIZER["eps"] < largest, name


@per_row
def test_plans_differ(table: Table, row: Row) -> None:
    ranks, tensor, pipeline = shape_of(row)
    data = ranks // (tensor * pipeline)
    minibatches = OBJECTIVES[row.objective][1].get("minibatches", 1)
    count = table.metrics(row)[0]["batch/micro_batches"]
    if row.plan == "unpacked":
        assert count == sum(SAMPLES_OF_GROUPS) + sum(SAMPLES_OF_GROUPS) % data
    elif row.plan == "all":
        assert count == minibatches * data
    else:
        assert minibatches * data < count < sum(SAMPLES_OF_GROUPS)
