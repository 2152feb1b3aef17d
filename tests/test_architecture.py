"""The directions in which the package's modules may import each other, read from the imports themselves.

An import under `if TYPE_CHECKING:` binds nothing at run time and is not counted.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "megatron_urpo"

WORDS = {"types", "protocols", "config"}
PURE = {"data", "algorithm", "reward"}
# What each room may import beside the words; the loop (every other module of the top level) may import everything.
ROOMS: dict[str, set[str]] = {
    "types": set(),
    "protocols": {"types"},
    "config": {"types"},
    "data": set(),
    "algorithm": set(),
    "reward": set(),
    "metrics": {"reward"},
    "rollout": {"data", "reward", "algorithm"},
    "packing": {"data", "rollout"},
    "inference": set(),
    "policy": {"algorithm"},
    "weight_sync": set(),
    "reporting": {"metrics"},
}
ALLOWED_OUTSIDE: dict[str, set[str]] = {
    "types": set(),
    "protocols": set(),
    "config": {"pydantic", "yaml"},
}
ONLY_IN: dict[str, set[str]] = {
    "megatron": {"policy"},
    "torch.distributed": {"policy", "weight_sync"},
    "transformer_engine": {"policy"},
    "math_verify": {"reward"},
    "wandb": {"reporting"},
}
NEVER = {"sglang", "vllm"}
# Loaded by path into vLLM's own processes, which have torch and vLLM but not this package: it imports nothing of the
# package, and the package nothing of it.
EXTENSION = Path("inference/vllm/extension")


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a module imports at run time, wherever the import stands."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def violations(root: Path) -> list[str]:
    """Every import below `root` that breaks a rule, as one line."""
    found = []
    for path in sorted(root.rglob("*.py")):
        room = room_of(path, root)
        for name in imports_of(path):
            is_extension = path.relative_to(root).is_relative_to(EXTENSION)
            problem = rule_broken_by_extension(name) if is_extension else rule_broken(room, name)
            if problem:
                found.append(f"{path.relative_to(root)} imports {name}: {problem}")
    return found


def rule_broken_by_extension(name: str) -> str | None:
    return "vLLM's processes have no such package" if name.split(".")[0] == "megatron_urpo" else None


def rule_broken(room: str, name: str) -> str | None:
    top = name.split(".")[0]
    if name.startswith(".".join(("megatron_urpo", *EXTENSION.parts))):
        return "belongs to vLLM's processes"
    if top == "megatron_urpo":
        target = name.split(".")[1] if "." in name else ""
        if room not in ROOMS or target in (room, "__version__", ""):
            return None
        if target in ROOMS and (target in ROOMS[room] or (target in WORDS and room not in WORDS)):
            return None
        return f"`{room}` may import {sorted(ROOMS[room] | (WORDS if room not in WORDS else set()))}"
    if top in NEVER:
        return "servers are spoken to over HTTP"
    for module, rooms in ONLY_IN.items():
        if (name == module or name.startswith(module + ".")) and room not in rooms:
            return f"only under {sorted(rooms)}"
    allowed = ALLOWED_OUTSIDE.get(room)
    if allowed is not None and top not in allowed and not is_standard_library(top):
        return f"`{room}` may import the standard library and {sorted(allowed)}"
    return None


def is_standard_library(name: str) -> bool:
    import sys

    return name in sys.stdlib_module_names


def rooms_imported(root: Path) -> dict[str, set[str]]:
    """By room: the other rooms that its modules import."""
    found: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        names = (name.split(".") for name in imports_of(path) if name.startswith("megatron_urpo."))
        room = room_of(path, root)
        found.setdefault(room, set()).update({parts[1] for parts in names} - {room})
    return found


def test_package_keeps_its_directions() -> None:
    assert violations(PACKAGE) == []


def test_no_rooms_import_each_other() -> None:
    order = list(graphlib.TopologicalSorter(rooms_imported(PACKAGE)).static_order())
    assert order.index("types") < order.index("rollout") < order.index("train")


def test_rooms_that_import_each_other_are_found(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("from megatron_urpo.replay import replay\n")
    (tmp_path / "replay.py").write_text("from megatron_urpo.score import score\n")
    with pytest.raises(graphlib.CycleError, match="replay"):
        graphlib.TopologicalSorter(rooms_imported(tmp_path)).prepare()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("types.py", "import torch"),
        ("config/load.py", "import megatron_urpo.data.store"),
        ("protocols.py", "from megatron_urpo.config import Config"),
        ("data/store.py", "from megatron_urpo.rollout.collect import collect"),
        ("data/stream.py", "from megatron_urpo.reward.preference import kendall_tau"),
        ("algorithm/losses.py", "import torch.distributed as dist"),
        ("reward/preference.py", "from megatron_urpo.train import train"),
        ("packing/pack.py", "from megatron_urpo.reward.preference import kendall_tau"),
        ("rollout/player.py", "from megatron_urpo.inference.embedded import EmbeddedEngine"),
        ("rollout/player.py", "from megatron.core import parallel_state"),
        ("inference/embedded.py", "from megatron_urpo.policy.policy import Policy"),
        ("inference/sglang.py", "import sglang"),
        ("inference/vllm.py", "from vllm import LLM"),
        ("inference/vllm/extension/worker.py", "from megatron_urpo.types import Completion"),
        ("inference/vllm/client.py", "from megatron_urpo.inference.vllm.extension.worker import WeightUpdates"),
        ("policy/update.py", "from megatron_urpo.rollout.samples import build_samples"),
        ("weight_sync/push.py", "from megatron_urpo.inference.embedded import EmbeddedEngine"),
        ("reporting/progress.py", "from megatron_urpo.train import train"),
        ("train.py", "from megatron.core import parallel_state"),
        ("train.py", "import wandb"),
        ("rollout/verdict.py", "import math_verify"),
        ("inference/embedded.py", "import transformer_engine.pytorch"),
    ],
)
def test_each_rule_can_fail(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def test_type_checking_imports_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "types.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n"
    )
    assert [line.split(":")[0] for line in violations(tmp_path)] == ["types.py imports numpy"]


def test_loop_fits_one_screen() -> None:
    tree = ast.parse((PACKAGE / "train.py").read_text())
    (loop,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 60
