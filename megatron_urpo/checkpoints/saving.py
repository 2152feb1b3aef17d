"""Saves of a run that do not stop it: the state is copied, a thread writes it, and the loop commits it later.

    parts -> fsync (files and folders) -> manifest -> fsync -> rename -> fsync of the folder above

Every rank's thread writes and syncs that rank's part; the rename happens at the first look of the loop at which all of
them are done. What fails in a thread is raised by the loop on every rank, with rank and path.
"""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from megatron_urpo.checkpoints.manifest import NAME, Manifest, fingerprint, kept_checkpoints
from megatron_urpo.checkpoints.state import Ahead, RunState, expected_layout
from megatron_urpo.config import Config
from megatron_urpo.policy.checkpoint import copy_policy
from megatron_urpo.policy.durable import FileFacts, file_facts, sync_folder, write_durable
from megatron_urpo.policy.parts import Parts
from megatron_urpo.policy.policy import Policy
from megatron_urpo.policy.random_state import copy_random_state
from megatron_urpo.protocols import SaveFailed
from megatron_urpo.reporting.batches import Batches
from megatron_urpo.rollout.saved import rollout_to_json

Facts = dict[str, FileFacts]


@dataclass
class _Task:
    """One rank's writing, in a thread of its own that ends with the process."""

    work: Callable[[], Facts]
    facts: Facts = field(default_factory=dict)
    error: str | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.facts = self.work()
        except Exception as error:  # raised again by the loop, on every rank
            self.error = f"{type(error).__name__}: {error}"

    def wait(self) -> None:
        self._thread.join()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()


@dataclass
class _Pending:
    state: RunState
    folder: Path
    parts: Parts
    task: _Task


class Saver:
    """The saves of one run, one at a time. Every method is collective; `start` is the step that it goes on from."""

    def __init__(self, config: Config, policy: Policy, start: int) -> None:
        self._config, self._policy, self._saved = config, policy, start
        self._root = config.run_dir / "checkpoints"
        self._pending: _Pending | None = None

    def __enter__(self) -> "Saver":
        self._policy.parallel.from_rank0(_remove_leftovers, self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A save that is under way is committed, but not where the loop failed: other ranks may not come along."""
        if error is None:
            self.settle(wait=True)

    def save(self, state: RunState) -> None:
        """Returns when the state is copied, or committed where `checkpoint.background` is false.

        Nothing is done for a step that is saved already, nor at step 0, which a new start gives as well.
        """
        if state.step == self._saved:
            return
        self.settle(wait=True)
        parallel = self._policy.parallel
        folder = self._root / f"step_{state.step:06d}.unfinished"
        parallel.from_rank0(_make_empty, folder)
        parts = copy_policy(self._policy, folder / "policy")
        task = _Task(_Writing(folder, parallel.rank, parts, copy_random_state(), state.ahead))
        self._pending, self._saved = _Pending(state, folder, parts, task), state.step
        if not self._config.checkpoint.background:
            self.settle(wait=True)

    def settle(self, wait: bool = False) -> None:
        """Commits a save that all ranks have written; with `wait` when they have. Raises SaveFailed."""
        if self._pending is None:
            return
        pending, parallel = self._pending, self._policy.parallel
        if wait:
            pending.task.wait()
        done = pending.task.done
        looks = parallel.gather((done, pending.task.error, pending.task.facts if done else {}))
        errors = [f"rank {rank}: {error}" for rank, (_, error, _) in enumerate(looks) if error]
        if errors:
            self._pending = None
            raise SaveFailed(self._failed(pending.folder, "; ".join(errors)))
        if not all(done for done, _, _ in looks):
            return
        self._pending = None
        pending.parts.finish()
        files = {name: facts for _, _, part in looks for name, facts in part.items()}
        if error := parallel.from_rank0(self._try_commit, pending, files):
            raise SaveFailed(self._failed(pending.folder, f"rank 0: {error}"))

    def _try_commit(self, pending: _Pending, files: Facts) -> str | None:
        try:
            self._commit(pending, files)
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _commit(self, pending: _Pending, files: Facts) -> None:
        folder, state, config = pending.folder, pending.state, self._config
        for name in ("policy/.metadata", "policy/metadata.json", "policy/common.pt"):
            files[name] = file_facts(folder / name, sync=True)
        values = {"step": state.step, "health": asdict(state.health), "stream": state.stream}
        files["state.json"] = write_durable(folder / "state.json", (json.dumps(values, indent=1) + "\n").encode())
        for inner in (folder / "policy", folder / "random", folder):
            sync_folder(inner)
        plain = config.model_dump(mode="json")
        manifest = Manifest(
            state.step, expected_layout(config), asdict(self._policy.part.shape), plain, fingerprint(plain), files
        )
        write_durable(folder / NAME, manifest.to_json())
        sync_folder(folder)
        folder.rename(folder.with_suffix(""))
        sync_folder(self._root)
        _prune(config)

    def _failed(self, folder: Path, reason: str) -> str:
        self._policy.parallel.from_rank0(shutil.rmtree, folder, ignore_errors=True)
        kept = list(kept_checkpoints(self._config.run_dir).values())
        rest = f"the newest checkpoint is {kept[-1]}" if kept else "no checkpoint was saved before it"
        return f"{folder.with_suffix('')} could not be saved: {reason}; {rest}, and the run goes on from there"


@dataclass
class _Writing:
    """What a rank's thread does."""

    folder: Path
    rank: int
    parts: Parts
    random_state: bytes
    ahead: Ahead | None

    def __call__(self) -> Facts:
        facts = {f"policy/{name}": found for name, found in self.parts.write().items()}
        name = f"random/rank_{self.rank:05d}.safetensors"
        facts[name] = write_durable(self.folder / name, self.random_state)
        if self.ahead is not None and self.rank == 0:
            row = {"stream": self.ahead.stream, "rollout": rollout_to_json(self.ahead.rollout)}
            facts["groups.json"] = write_durable(self.folder / "groups.json", json.dumps(row).encode())
        return facts


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("policy", "random"):
        (folder / name).mkdir(parents=True)


def _remove_leftovers(root: Path) -> None:
    """What a run that was killed had begun to write or to remove."""
    for folder in (*root.glob("step_*.unfinished"), *root.glob("step_*.removed")):
        shutil.rmtree(folder)


def _prune(config: Config) -> None:
    """Keeps the newest `keep_last` and every `keep_every`-th step; batches since the oldest of the newest stay.

    A folder is renamed before it is emptied: one named `step_*` is whole at any moment.
    """
    kept, checkpoint = kept_checkpoints(config.run_dir), config.checkpoint
    for step in list(kept)[: -checkpoint.keep_last]:
        if not (checkpoint.keep_every and step % checkpoint.keep_every == 0):
            gone = kept[step].with_suffix(".removed")
            kept[step].rename(gone)
            shutil.rmtree(gone)
    if len(kept) > checkpoint.keep_last:
        Batches(config.run_dir).forget_up_to(list(kept)[-checkpoint.keep_last])
