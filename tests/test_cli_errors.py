"""Bad input through the real command: one clear line, an exit code, nothing started.

Each case changes one thing in a run that works (`test_the_run_that_the_cases_break_works`).
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from click.testing import CliRunner, Result
from safetensors import safe_open

from megatron_urpo.cli import main
from megatron_urpo.policy.parallel import close_parallel
from tests.support.world import END, HEADER, write_chain_model, write_config, write_store, write_tokenizer

CHAIN = {HEADER: {"\\boxed{": 0.9, END: 0.1}, "\\boxed{": {"1": 0.5, "2": 0.5}, "1": {"}": 0.5, ",": 0.5},
         "2": {"}": 0.5, ",": 0.5}, ",": {"1": 0.5, "2": 0.5}}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_chain_model(folder / "model", CHAIN)
    write_store(folder / "train.jsonl")
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Path:
    """A folder with a model and a store, the test's own to damage."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def _leave_process_groups() -> Iterator[None]:
    """A case that fails by starting leaves nothing to the next one."""
    yield
    close_parallel()


def run(config: Path, *overrides: str) -> Result:
    try:
        return CliRunner().invoke(main, ["train", str(config), *overrides])
    finally:
        close_parallel()


def refusal(config: Path, *overrides: str, run_dir_exists: bool = False) -> str:
    """The line that a refused run says; asserts that it is the only one and that nothing was started."""
    before = set(config.parent.rglob("*"))
    result = CliRunner().invoke(main, ["train", str(config), *overrides])
    assert isinstance(result.exception, SystemExit), f"not refused cleanly: {result.exception!r}"
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not dist.is_initialized()
    assert set(config.parent.rglob("*")) == before, "a refused run leaves no files"
    return line


def test_the_run_that_the_cases_break_works(world: Path) -> None:
    result = run(write_config(world), "num_steps=1")
    assert result.exit_code == 0, result.output
    assert (world / "run" / "model" / "model.safetensors").is_file()


# --------------------------------------------------------------------------------------- one value is wrong
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rollout.temprature=1", ["rollout.temprature", "unknown key", "did you mean `temperature`"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "valid number"]),
        ("num_steps=0", ["num_steps", "greater than 0", "got 0"]),
        ("loss.minibatches=4", ["data.prompts_per_step: 6", "loss.minibatches 4", "6 / 4 = 1.50", "4 or 8"]),
        ("rollout.completions_per_prompt=1", ["rollout.completions_per_prompt: 1", "below 2", "2 or more"]),
        ("parallel.tensor=3", ["parallel.tensor: 3", "4 attention heads", "4 / 3"]),
        ("parallel.tensor=4", ["parallel.tensor: 4", "2 key-value groups", "2 / 4"]),
        ("parallel.pipeline=3", ["parallel.pipeline: 3", "2 layers", "2 / 3"]),
        ("parallel.tensor=2", ["tensor 2 x pipeline 1 = 2 ranks", "1 ranks were started", "multiple of 2"]),
        ("rollout.max_new_tokens=49", ["rollout.max_prompt_tokens: 16", "49 = 65", "context of 64"]),
        ("referee.max_prompt_tokens=60", ["referee.max_prompt_tokens: 60", "8 = 68", "context of 64"]),
        ("loss.max_tokens_per_micro_batch=47", ["micro_batch: 47", "40 + referee.max_new_tokens 8 = 48"]),
        ("model.path=nowhere", ["model.path: nowhere", "not a folder"]),
        ("model.tokenizer=nowhere", ["model.tokenizer: nowhere", "no folder"]),
        ("data.train=[nowhere.jsonl]", ["data.train: nowhere.jsonl", "is no file"]),
        ("evaluation.data=[nowhere.jsonl]", ["evaluation.data: nowhere.jsonl", "is no file"]),
        ("evaluation.scorer=[no-such-program]", ["evaluation.scorer", "'no-such-program'", "PATH"]),
        ("referee.score_range=[3, 3]", ["referee.score_range: [3, 3]", "empty"]),
    ],
)  # fmt: skip
def test_one_wrong_value(world: Path, override: str, parts: list[str]) -> None:
    line = refusal(write_config(world), override)
    for part in parts:
        assert part in line


def test_ranks_that_cannot_be_arranged(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    line = refusal(write_config(world), "parallel.pipeline=2")
    assert "tensor 1 x pipeline 2 = 2 ranks" in line
    assert "3 ranks were started" in line


@pytest.mark.parametrize(
    ("package", "override", "field"),
    [
        ("wandb", "logging.wandb=offline", "logging.wandb: offline"),
        ("transformer_engine", "model.spec=te", "model.spec: te"),
    ],
)
def test_a_package_that_is_asked_for_and_absent(
    world: Path, monkeypatch: pytest.MonkeyPatch, package: str, override: str, field: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say that a package cannot be imported
    line = refusal(write_config(world), override)
    assert field in line
    assert "install" in line


# ---------------------------------------------------------------------------------------- a file is wrong
def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def drop_task(world: Path) -> None:
    write_store(world / "train.jsonl", tasks=("reasoning", "preference"))


def index_of_another_model(world: Path) -> None:
    shutil.move(world / "model" / "model.safetensors", world / "model" / "part.safetensors")
    weights = {"weight_map": {"model.norm.weight": "part.safetensors"}}
    (world / "model" / "model.safetensors.index.json").write_text(json.dumps(weights))


def missing_part(world: Path) -> None:
    with safe_open(world / "model" / "model.safetensors", "pt") as file:
        weights = dict.fromkeys(file.keys(), "gone.safetensors")
    (world / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (drop_task, ["data.curriculum.0.mix.instruction", "has none", "reasoning 3, preference 3, instruction 0"]),
        (lambda w: (w / "train.jsonl").write_text("{}\n"), ["data.train", "jsonl:1: task: is missing; use one of"]),
        (lambda w: (w / "train.jsonl").write_text(""), ["data.train", "holds no rows"]),
        (lambda w: (w / "model" / "model.safetensors").unlink(), ["model.path", "neither model.safetensors"]),
        (lambda w: cut(w / "model" / "model.safetensors", 5000), ["model.safetensors", "not readable"]),
        (lambda w: (w / "model" / "model.safetensors").write_bytes(b"\xff" * 99), ["model.safetensors", "readable"]),
        (lambda w: (w / "model" / "model.safetensors.index.json").write_text("[]"), ["index.json", "not an index"]),
        (index_of_another_model, ["model.path", "no tensor 'model.embed_tokens.weight'"]),
        (missing_part, ["model.path", "gone.safetensors", "missing or not readable"]),
        (lambda w: edit_json(w / "model" / "config.json", vocab_size=99), ["embed_tokens", "(23, 32)", "(99, 32)"]),
        (lambda w: edit_json(w / "model" / "config.json", intermediate_size=6), ["gate_proj", "(64, 32)", "(6, 32)"]),
        (lambda w: edit_json(w / "model" / "config.json", num_hidden_layers=3), ["no tensor 'model.layers.2"]),
        (lambda w: edit_json(w / "model" / "config.json", model_type="gpt2"), ["architecture 'gpt2'", "qwen2"]),
        (lambda w: (w / "model" / "config.json").unlink(), ["model.path", "no config.json"]),
        (lambda w: cut(w / "model" / "config.json", 40), ["model.path", "not readable as JSON"]),
        (lambda w: write_tokenizer(w / "model", [f"x{i}" for i in range(9)]), ["32 tokens", "vocab_size 23"]),
        (lambda w: (w / "model" / "tokenizer.json").write_text("{"), ["tokenizer", "transformers can read"]),
        (lambda w: (w / "config.yaml").write_text("model: ["), ["config", "not readable as YAML"]),
        (lambda w: (w / "config.yaml").unlink(), ["config", "does not exist"]),
        (lambda w: (w / "run").write_text("I am a file"), ["run_dir", "is a file"]),
    ],
)  # fmt: skip
def test_one_wrong_file(world: Path, damage: Callable[[Path], object], parts: list[str]) -> None:
    config = write_config(world)
    damage(world)
    line = refusal(config)
    for part in parts:
        assert part in line


# --------------------------------------------------------------------------- the run folder cannot be gone on with
NO_OTHER = "no earlier checkpoint of this run is whole: give another run_dir"


@pytest.fixture
def resumable(world: Path) -> Path:
    assert run(write_config(world), "num_steps=1").exit_code == 0
    return world


def manifest_of(world: Path) -> Path:
    return world / "run" / "checkpoints" / "step_000001" / "manifest.json"


def part_of(world: Path) -> Path:
    return manifest_of(world).parent / "policy" / "__0_0.distcp"


def rewrite_state(world: Path, text: str) -> None:
    """As if the run had written it: the manifest knows its length."""
    (manifest_of(world).parent / "state.json").write_text(text)
    files = json.loads(manifest_of(world).read_text())["files"]
    edit_json(manifest_of(world), files={**files, "state.json": {"num_bytes": len(text), "sha256": "0"}})


def without_stream(world: Path) -> None:
    state = json.loads((manifest_of(world).parent / "state.json").read_text())
    rewrite_state(world, json.dumps({**state, "stream": {}}))


def another_model(world: Path) -> None:
    shape = json.loads(manifest_of(world).read_text())["shape"]
    edit_json(manifest_of(world), shape={**shape, "hidden_size": 48, "num_layers": 9})


def rows_in_another_order(world: Path) -> None:
    write_store(world / "train.jsonl", tasks=("preference", "reasoning", "instruction"))


@pytest.mark.parametrize(
    ("damage", "overrides", "parts"),
    [
        (another_model, [], ["run_dir", "another model", "hidden_size 48 there, 32", "num_layers 9 there, 2"]),
        (lambda w: manifest_of(w).unlink(), [], ["step_000001 has no manifest.json: it is incomplete", NO_OTHER]),
        (lambda w: manifest_of(w).write_text("{"), [], ["a manifest.json that cannot be read", NO_OTHER]),
        (lambda w: manifest_of(w).write_text("[]"), [], ["manifest.json that cannot be read", "list", NO_OTHER]),
        (lambda w: edit_json(manifest_of(w), step="x"), [], ["manifest.json that cannot be read", "integer"]),
        (lambda w: edit_json(manifest_of(w), files={"../../x": {"num_bytes": 1, "sha256": ""}}), [], ["list of files"]),
        (lambda w: edit_json(manifest_of(w), format=99), [], ["format 99", "newer", "the version that wrote it"]),
        (lambda w: edit_json(manifest_of(w), format=1), [], ["format 1", "older", "the version that wrote it"]),
        (lambda w: rewrite_state(w, "{"), [], ["a state.json that cannot be read", NO_OTHER]),
        (without_stream, [], ["run_dir", "position", "damaged"]),
        (lambda w: part_of(w).unlink(), [], ["__0_0.distcp is missing"]),
        (lambda w: cut(part_of(w), 9), [], ["__0_0.distcp is truncated", "has 9"]),
        (lambda w: None, ["parallel.distributed_optimizer=false"], ["optimizer: false", "saved with true"]),
        (lambda w: None, ["model.dtype=bfloat16"], ["model.dtype: bfloat16", "saved with float32"]),
        (lambda w: None, ["checkpoint.resume=false"], ["checkpoint.resume: false", "step_000001", "another run_dir"]),
        (rows_in_another_order, [], ["data.train", "the store's prompts", "restore them or start a new run folder"]),
        (lambda w: None, ["seed=7"], ["seed: 7 now, 0 in the checkpoint"]),
    ],
)  # fmt: skip
def test_one_checkpoint_that_does_not_fit(
    resumable: Path, damage: Callable[[Path], object], overrides: list[str], parts: list[str]
) -> None:
    damage(resumable)
    line = refusal(resumable / "config.yaml", *overrides)
    for part in parts:
        assert part in line


# ---------------------------------------------------------------------------------------- a step cannot be replayed
@pytest.mark.parametrize(
    ("damage", "arguments", "parts"),
    [
        (lambda w: None, ["--step", "9"], ["--step: 9", "its batch is not kept", "those that can: 1"]),
        (lambda w: None, ["--step", "0"], ["--step: 0", "those that can: 1"]),
        (lambda w: None, ["--step", "1", "--layout", "tensr=2"], ["parallel.tensr", "did you mean `tensor`"]),
        (lambda w: None, ["--step", "1", "--layout", "tensor=2"], ["= 2 ranks hold", "1 ranks were started"]),
        (lambda w: None, ["--step", "1", "loss.clip_lov=0"], ["loss.clip_lov", "did you mean `clip_low`"]),
        (lambda w: cut(w / "run" / "batches" / "step_000001.npz", 900), ["--step", "1"], ["000001.npz", "damaged"]),
        (lambda w: shutil.rmtree(w / "run" / "batches"), ["--step", "1"], ["no batch", "checkpoint.keep_batches"]),
        (lambda w: shutil.rmtree(w / "run"), ["--step", "1"], ["no such folder", "run_dir"]),
        (lambda w: shutil.rmtree(w / "model"), ["--step", "1"], ["model.path", "not a folder"]),
    ],
)  # fmt: skip
def test_one_step_that_cannot_be_replayed(
    resumable: Path, damage: Callable[[Path], object], arguments: list[str], parts: list[str]
) -> None:
    damage(resumable)
    result = CliRunner().invoke(main, ["replay", str(resumable / "run"), *arguments])
    assert result.exit_code == 2, result.exception
    (line,) = result.stderr.splitlines()
    for part in ["error: ", *parts]:
        assert part in line
    assert not dist.is_initialized()
