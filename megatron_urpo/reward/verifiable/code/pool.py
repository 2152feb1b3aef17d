"""A pool of sandboxes that judges programs: each worker is a thread with fork servers of its own.

What a program does wrong is its own: it is `wrong`, with a cause, also where it runs out of time or memory, since
those are limits of the task. Only what the verifier does wrong is a `verifier_error` and masked: tests
that do not load. A sandbox that dies over a program is replaced and the program tried once more; if that one dies too,
the program is what they had in common.
"""

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

from megatron_urpo.config.reward import CodeConfig
from megatron_urpo.reward.verifiable.code.extract import MAX_PROGRAM_CHARACTERS, last_program
from megatron_urpo.reward.verifiable.code.judge import Cell, Judged, judge
from megatron_urpo.reward.verifiable.code.sandbox import Level, Limits, Sandbox, SandboxLost, SandboxUnavailable
from megatron_urpo.reward.verifiable.outcome import Verified, verified
from megatron_urpo.types import CodeTests

_WALL_FACTOR, _WALL_EXTRA = 4.0, 2.0  # on a busy machine a slow program must not be a wrong one


def probe_isolation(wanted: str) -> Level:
    """The level that programs will run at here, tried out. Raises SandboxUnavailable where it is less than `wanted`."""
    levels: tuple[Level, ...] = ("namespaces", "processes")
    for level in levels:
        if wanted not in (level, "any"):
            continue
        try:
            Sandbox(level).close()
        except (SandboxUnavailable, SandboxLost) as error:
            if wanted == level or level == "processes":
                raise SandboxUnavailable(str(error)) from None
            continue
        return level
    raise ValueError(f"{wanted!r} is no level of isolation")


class CodeVerifier:
    """At most `config.workers` programs at a time; nothing is started before the first."""

    def __init__(self, config: CodeConfig) -> None:
        self._config = config
        seconds = config.timeout_seconds
        self._limits = Limits(
            seconds * _WALL_FACTOR + _WALL_EXTRA, seconds, config.memory_mib, config.processes, config.file_mib,
            config.output_kib << 10,
        )  # fmt: skip
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="code-verifier")
        self._idle: queue.LifoQueue[Cell] = queue.LifoQueue()
        self._cells: set[Cell] = set()
        self._lock = threading.Lock()
        self._level: Level | None = None
        self._closed = False

    async def verify(self, text: str, tests: CodeTests) -> Verified:
        """Judges the last program of a completion. Raises RuntimeError where no sandbox can be started, or closed."""
        program = last_program(text)
        if program is None:
            return verified("no_answer")
        if len(program) > MAX_PROGRAM_CHARACTERS:
            return verified("wrong", "runtime_error")
        judged = await asyncio.wrap_future(self._threads.submit(self._judge, program, tests))
        if judged.cause == "bad_tests":
            return verified("verifier_error", judged.cause)
        if not judged.cause:
            return verified("correct")
        fraction = judged.num_passed / judged.num_cases if self._config.reward == "fraction" else 0.0
        return Verified("wrong", fraction, judged.cause)

    def close(self) -> None:
        """Kills every sandbox and waits for the threads. May be called again."""
        with self._lock:
            self._closed = True
            cells = list(self._cells)
        for cell in cells:
            cell.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for cell in cells:
            cell.close()
        self._cells.clear()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the fork servers that run now."""
        with self._lock:
            return tuple(pid for cell in self._cells for pid in cell.pids)

    def _judge(self, program: str, tests: CodeTests) -> Judged:
        for _ in range(2):
            cell = self._lease()
            try:
                judged = judge(cell, program, tests, self._limits, self._config.reward == "fraction")
            except SandboxLost:
                self._forget(cell)
                if self._closed:
                    break
                continue
            except BaseException:
                self._forget(cell)
                raise
            self._idle.put(cell)
            return judged
        return Judged(0, 1, "bad_tests" if self._closed else "sandbox_lost")

    def _lease(self) -> Cell:
        while True:
            try:
                cell = self._idle.get_nowait()
            except queue.Empty:
                cell = Cell(self._open_sandbox)
                with self._lock:
                    if self._closed:
                        raise RuntimeError("code verifier: is closed") from None
                    self._cells.add(cell)
                return cell
            if cell.alive:
                return cell
            self._forget(cell)

    def _open_sandbox(self) -> Sandbox:
        try:
            with self._lock:
                if self._closed:
                    raise SandboxLost("the verifier is closed")
                if self._level is None:
                    self._level = probe_isolation(self._config.isolation)
                level = self._level
            return Sandbox(level)
        except SandboxUnavailable as error:
            raise RuntimeError(
                f"code verifier: no sandbox at verifier.code.isolation {self._config.isolation}: {error}"
            ) from None

    def _forget(self, cell: Cell) -> None:
        with self._lock:
            self._cells.discard(cell)
        cell.close()
