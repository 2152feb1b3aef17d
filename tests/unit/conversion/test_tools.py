"""tools/*.py as commands, each start a process of its own: exit codes, one line for bad input, nothing half-written."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.miniature import ROOT
from tests.support.models import make_model

TO_MEGATRON, TO_HF, VERIFY = ("convert_hf_to_megatron", "convert_megatron_to_hf", "verify_checkpoint")


def start(tool: str, *arguments: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, f"tools/{tool}.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(tool: str, *arguments: Path | str) -> tuple[int, str, str]:
    with start(tool, *arguments) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


class Folders:
    """A Hugging Face folder in several files, and its conversion."""

    def __init__(self, root: Path):
        self.root, self.hf, self.megatron = root, root / "hf", root / "megatron"
        make_model(self.hf, "qwen2").save_pretrained(self.hf, max_shard_size="200KB")
        (self.hf / "model.safetensors").unlink(missing_ok=True)

    def copy(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.root / name))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = Folders(tmp_path_factory.mktemp("tools"))
    code, out, err = run(TO_MEGATRON, made.hf, made.megatron)
    assert (code, err) == (0, "")
    assert "qwen2" in out
    return made


def test_there_and_back_and_equal(folders: Folders) -> None:
    back = folders.root / "back"
    assert run(TO_HF, folders.megatron, back)[0] == 0
    code, out, _ = run(VERIFY, folders.hf, back)
    assert (code, out.split(":")[0]) == (0, "equal")


WITHOUT_TORCH = """\
import sys
from pathlib import Path
from megatron_urpo.user_errors import user_errors
with user_errors():
    from megatron_urpo.conversion.convert import hf_to_megatron, megatron_to_hf
    hf_to_megatron(Path(sys.argv[1]), Path(sys.argv[2]))
    megatron_to_hf(Path(sys.argv[2]), Path(sys.argv[3]))
sys.exit(f"imported: {found}" if (found := {"torch", "transformers", "megatron"} & sys.modules.keys()) else 0)
"""


def test_bytes_are_moved_without_torch(folders: Folders) -> None:
    """Importing it takes longer than converting a small model."""
    targets = [str(folders.root / "quick" / name) for name in ("megatron", "hf")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(folders.hf), *targets], cwd=ROOT, stderr=-1)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_changed_value_is_exit_code_1_with_its_name(folders: Folders) -> None:
    changed = folders.copy(folders.megatron, "changed")
    part = next((changed / "weights").glob("*.distcp"))
    data = bytearray(part.read_bytes())
    data[5000] ^= 1
    part.write_bytes(data)
    code, out, err = run(VERIFY, folders.hf, changed)
    assert (code, err) == (1, "")
    assert ".weight: values differ" in out
    assert "different" in out


@pytest.mark.parametrize("tool", [TO_MEGATRON, TO_HF, VERIFY])
def test_help_names_the_exit_codes(tool: str) -> None:
    code, out, err = run(tool, "--help")
    assert (code, err) == (0, "")
    assert "Exit code" in out


def shard_missing(folders: Folders) -> tuple[str, Path, Path]:
    broken = folders.copy(folders.hf, "shard-missing")
    min(broken.glob("model-*.safetensors")).unlink()
    return TO_MEGATRON, broken, folders.root / "out"


def shard_not_in_the_index(folders: Folders) -> tuple[str, Path, Path]:
    broken = folders.copy(folders.hf, "not-in-index")
    index = broken / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = min(content["weight_map"].values())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != lost}
    index.write_text(json.dumps(content))
    return TO_MEGATRON, broken, folders.root / "out"


def target_exists(folders: Folders) -> tuple[str, Path, Path]:
    return TO_MEGATRON, folders.hf, folders.megatron


def target_below_a_file(folders: Folders) -> tuple[str, Path, Path]:
    return TO_MEGATRON, folders.hf, folders.hf / "config.json" / "out"


def target_cannot_be_written(folders: Folders) -> tuple[str, Path, Path]:
    """The kernel's own read-only folder: root may not write there either."""
    return TO_MEGATRON, folders.hf, Path("/proc/out")


def truncated(folders: Folders) -> tuple[str, Path, Path]:
    broken = folders.copy(folders.megatron, "truncated")
    part = next((broken / "weights").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1])
    return TO_HF, broken, folders.root / "out"


BAD: dict[str, tuple[Callable[[Folders], tuple[str, Path, Path]], str]] = {
    "shard missing": (shard_missing, "missing"),
    "shard not in the index": (shard_not_in_the_index, "holds no"),
    "target exists": (target_exists, "exists; give another path"),
    "target below a file": (target_below_a_file, "is a file; give another path"),
    "target cannot be written": (target_cannot_be_written, "cannot be written"),
    "truncated": (truncated, "ends before byte"),
}


@pytest.fixture(scope="module")
def answers(folders: Folders) -> dict[str, tuple[int, str, str]]:
    """Of all bad inputs, side by side: each process spends its seconds on imports."""
    started = {name: start(*make(folders)) for name, (make, _) in BAD.items()}
    texts = {name: process.communicate(timeout=240) for name, process in started.items()}
    return {name: (started[name].returncode, *texts[name]) for name in BAD}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_exit_code_2_and_one_line(
    folders: Folders, answers: dict[str, tuple[int, str, str]], name: str
) -> None:
    code, out, err = answers[name]
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert BAD[name][1] in err
    assert not (folders.root / "out").exists()
    assert not list(folders.root.glob("*.partial"))


class Payload:
    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.touched}",)


def test_a_pickle_that_would_run_is_refused_and_does_not(folders: Folders) -> None:
    evil, touched = folders.copy(folders.megatron, "evil"), folders.root / "touched"
    (evil / "weights" / ".metadata").write_bytes(pickle.dumps(Payload(touched)))
    code, _, err = run(TO_HF, evil, folders.root / "from-evil")
    assert code == 2
    assert err.count("\n") == 1
    assert "system" in err
    assert not touched.exists()
    pickle.loads((evil / "weights" / ".metadata").read_bytes())  # it is a live one: plain pickle runs it
    assert touched.exists()


def test_killed_in_the_middle_it_leaves_nothing_that_loads(tmp_path: Path) -> None:
    """Large enough to be caught at work, on any machine: its folder beside the target is waited for."""
    make_model(tmp_path / "hf", "qwen2", vocab_size=200_000, hidden_size=128)
    target, aside = tmp_path / "out", tmp_path / "out.partial"
    with start(TO_MEGATRON, tmp_path / "hf", target) as process:
        while not any(aside.glob("weights/*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not target.exists()
    assert aside.exists()
    assert run(TO_HF, aside, tmp_path / "from-half")[0] == 2
    assert run(TO_MEGATRON, tmp_path / "hf", target)[0] == 0
    assert not aside.exists()
    assert run(TO_HF, target, tmp_path / "back")[0] == 0
    original = load_file(tmp_path / "hf" / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
