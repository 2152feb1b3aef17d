"""The job file says what config and command line say, holds hostile words as words, and refuses before the queue."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megatron_urpo.cli import main
from megatron_urpo.cluster.job import Request, check_job, render_job
from megatron_urpo.config import ConfigError, load_config
from tests.support.miniature import ROOT
from tests.support.models import make_model

CONFIG = ROOT / "examples" / "miniature" / "config.yaml"
REQUEST = Request(nodes=2, partition="gpu", account="me")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job") / "model"
    make_model(folder, "qwen2")
    return folder


def render(*overrides: str, request: Request = REQUEST) -> str:
    return render_job(load_config(CONFIG, overrides)[0], CONFIG, overrides, request)


def test_the_header_is_the_configs() -> None:
    text = render(
        "run_dir=/shared/run", "launch.time=1-00:00:00", "launch.warn_seconds=120", "launch.container=pyxis:a/b:1"
    )
    assert text.splitlines()[:13] == [
        "#!/bin/bash", "#SBATCH --job-name=urpo-run", "#SBATCH --partition=gpu", "#SBATCH --account=me",
        "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8", "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=1-00:00:00", "#SBATCH --signal=B:USR1@120", "#SBATCH --requeue", "#SBATCH --open-mode=append",
        "#SBATCH --output=/shared/run/jobs/%j.log",
    ]  # fmt: skip
    assert "export URPO_CONTAINER=pyxis:a/b:1\n" in text
    assert text.endswith("/scripts/slurm/train_colocated.sbatch\n")


def test_servers_get_a_component_of_their_own() -> None:
    text = render(
        "run_dir=/shared/run", "rollout.engine=sglang", "rollout.sglang.num_servers=4", "rollout.sglang.tensor=4",
        "launch.server_nodes=2",
    )  # fmt: skip
    assert text.split("#SBATCH hetjob\n")[1].splitlines()[:6] == [
        "#SBATCH --partition=gpu", "#SBATCH --account=me", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2",
        "#SBATCH --gpus-per-node=8", "#SBATCH --cpus-per-task=32",
    ]  # fmt: skip
    assert "export URPO_ENGINE=sglang\n" in text
    assert text.endswith("/scripts/slurm/train_disaggregated.sbatch\n")


def test_hostile_words_reach_the_run_as_they_are(tmp_path: Path) -> None:
    """Everything but the last line is run by a shell, which then says what it understood."""
    trap = tmp_path / "trap"
    words = [
        f"evaluation.scorer=[sh, '$(touch {trap})', '`touch {trap}`']",
        f"logging.wandb_project=x'; touch {trap}; echo '$(touch {trap})",
        f'model.path="a\n#SBATCH --wrap=evil\ntouch {trap}"',
        "rollout.embedded.max_batch_tokens=1024",
    ]
    text = render("run_dir=/shared/run", *words)
    before, last = text.rstrip("\n").rsplit("\n", 1)
    assert last.startswith("source ")
    done = subprocess.run(["bash", "-c", before + "\nprintf '%s\\0' \"$@\""], capture_output=True, text=True)
    assert done.stdout.split("\0")[:-1] == [str(CONFIG), "run_dir=/shared/run", *words]
    assert not trap.exists()
    header = text.split("\ncd -- ")[0]
    assert "evil" not in header


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"partition": "gpu\n#SBATCH --wrap=evil"}, "--partition"),
        ({"account": "me; touch x"}, "--account"),
        ({"qos": "$(x)"}, "--qos"),
        ({"name": "a b"}, "--name"),
    ],
)
def test_names_that_a_header_cannot_hold_are_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: .* is no name of SLURM's; use"):
        render("run_dir=/shared/run", request=Request(**{**vars(REQUEST), **values}))


@pytest.mark.parametrize("run_dir", ["/a b", "/a\n#SBATCH --wrap=evil", "/a%j", "/$(x)"])
def test_a_folder_that_a_header_cannot_hold_is_refused(run_dir: str) -> None:
    config = load_config(CONFIG, ["run_dir=x"])[0].model_copy(update={"run_dir": Path(run_dir)})
    with pytest.raises(ConfigError, match=r"^run_dir: .* has characters that a job's header cannot hold"):
        render_job(config, CONFIG, [], REQUEST)


@pytest.mark.parametrize(
    ("overrides", "nodes", "line"),
    [
        (["parallel.tensor=2", "launch.gpus_per_node=1"], 1, "--gpus: 1 for parallel.tensor 2 x"),
        (["parallel.tensor=4", "launch.gpus_per_node=0", "launch.ranks_per_node=2"], 1, "parallel"),
        (["launch.gpus_per_node=0"], 1, "launch.ranks_per_node: is missing"),
        (["launch.gpus_per_node=2", "launch.ranks_per_node=4"], 1, "launch.ranks_per_node: 4 is above"),
        (["launch.server_nodes=1"], 1, "launch.server_nodes: 1 with rollout.engine embedded"),
        (
            ["launch.server_nodes=2", "rollout.engine=sglang", "rollout.sglang.num_servers=3"], 1,
            "rollout.sglang.num_servers: 3 does not divide over launch.server_nodes 2",
        ),
        (
            ["launch.server_nodes=1", "rollout.engine=sglang", "rollout.sglang.tensor=16"], 1,
            "rollout.sglang.num_servers: 1 on 1 nodes with rollout.sglang.tensor 16 need 16 GPUs a node",
        ),
        ([], 0, "--nodes: 0 is below 1"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_the_queue(model: Path, overrides: list[str], nodes: int, line: str) -> None:
    config, _ = load_config(CONFIG, ["run_dir=/shared/run", f"model.path={model}", *overrides])
    with pytest.raises(ConfigError) as caught:
        check_job(config, Request(nodes, "gpu"), "h100")
    assert str(caught.value).startswith(line)


def test_what_plan_refuses_is_refused(model: Path) -> None:
    """The model's context is shorter than the longest sample."""
    config, _ = load_config(CONFIG, ["run_dir=/shared/run", f"model.path={model}", "rollout.max_prompt_tokens=9000000",
                                     "loss.max_tokens_per_micro_batch=10000000"])  # fmt: skip
    with pytest.raises(ConfigError, match=r"rollout\.max_prompt_tokens: 9000000"):
        check_job(config, Request(1, "gpu"), "h100")


def test_a_mistake_is_one_line_and_exit_code_2(model: Path) -> None:
    done = CliRunner().invoke(
        main, ["sbatch", str(CONFIG), f"model.path={model}", "run_dir=/x", "--nodes", "0", "--partition", "gpu"]
    )
    assert done.exit_code == 2
    assert done.output == "error: --nodes: 0 is below 1; give the number of nodes that train\n"
