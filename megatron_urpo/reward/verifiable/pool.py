"""Checks mathematical answers in killable child processes.

Symbolic mathematics on text that a model wrote can run forever or eat all memory, so it never happens in the trainer:
a small pool of children does it, each used until it fails, then killed and replaced. Each child is held by a thread
that waits on its pipe with a deadline of its own, so deadlines hold while the event loop is busy elsewhere.
"""

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megatron_urpo.reward.verifiable.answers import AnswerPattern, compare_plain, last_boxed, normalized
from megatron_urpo.reward.verifiable.child import ChildLost, VerifierChild
from megatron_urpo.reward.verifiable.outcome import Outcome

MAX_ANSWER_CHARACTERS = 1000
# The child limits its CPU time itself; the parent's deadline is for one that sleeps or is starved of CPU.
_WALL_FACTOR = 5.0


class MathVerifier:
    """A pool of at most `workers` children, started one by one as answers need them.

    `timeout_seconds` is the CPU time of one comparison, `memory_mib` the address space of one child.
    `pattern` finds answers that are not boxed.
    """

    def __init__(
        self, workers: int, timeout_seconds: float, memory_mib: int, pattern: AnswerPattern | None = None
    ) -> None:
        self._pattern = pattern
        self._timeout_seconds = timeout_seconds
        self._memory_mib = memory_mib
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math-verifier")
        # Last in, first out: a light load keeps to the first children and starts no more.
        self._idle: queue.LifoQueue[VerifierChild] = queue.LifoQueue()
        self._children: set[VerifierChild] = set()
        self._lock = threading.Lock()
        self._closed = False

    async def verify(self, text: str, answers: Sequence[str]) -> Outcome:
        """Judges the last answer of a completion, boxed or by the pattern, against the accepted `answers`.

        An answer above MAX_ANSWER_CHARACTERS is `wrong`: no accepted answer is that long unless it is the same.

        Raises:
            RuntimeError: children cannot start at all (math-verify missing, too little memory), or closed.
        """
        try:
            answer = last_boxed(text) if self._pattern is None else self._pattern.last(text)
        except TimeoutError:
            return "verifier_error"
        if answer is None:
            return "no_answer"
        plain = compare_plain(answer, answers)
        if plain is not None:
            return "correct" if plain else "wrong"
        if len(answer) > MAX_ANSWER_CHARACTERS:
            return "wrong"
        return await asyncio.wrap_future(
            self._threads.submit(self._compare, normalized(answer), tuple(map(normalized, answers)))
        )

    def close(self) -> None:
        """Kills every child, waits for the threads and reaps; answers under way become errors. May be called again."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.kill()  # wakes the thread that waits on its pipe
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in children:
            child.close_pipes()
        self._children.clear()

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Processes that run now."""
        with self._lock:
            return tuple(child.pid for child in self._children)

    def _compare(self, answer: str, accepted: tuple[str, ...]) -> Outcome:
        child = self._lease()
        try:
            result = child.compare(answer, accepted, self._timeout_seconds * _WALL_FACTOR)
        except ChildLost:
            self._forget(child)
            return "verifier_error"
        self._idle.put(child)
        if result == "correct":
            return "correct"
        return "wrong" if result == "wrong" else "verifier_error"

    def _lease(self) -> VerifierChild:
        """An idle child that lives, else a new one; there are never more of them than threads."""
        while True:
            try:
                child = self._idle.get_nowait()
            except queue.Empty:
                return self._start()
            if child.alive:
                return child
            self._forget(child)

    def _start(self) -> VerifierChild:
        try:
            child = VerifierChild(self._timeout_seconds, self._memory_mib)
        except ChildLost as error:
            raise RuntimeError(
                f"math verifier: a child process did not start ({error}); it needs the package math-verify and"
                f" verifier.memory_mib above what importing it takes (now {self._memory_mib}; 512 is enough)"
            ) from None
        with self._lock:
            if not self._closed:
                self._children.add(child)
                return child
        child.kill()
        child.close_pipes()
        raise RuntimeError("math verifier: is closed")

    def _forget(self, child: VerifierChild) -> None:
        with self._lock:
            self._children.discard(child)
            closing = self._closed  # close() has seen this child then, and closes its pipes after the threads are done
        child.kill()
        if not closing:
            child.close_pipes()
