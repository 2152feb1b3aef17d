"""What the scripted server has released of its memory, and which orders end a real one (SGLang 0.5.21)."""

from collections.abc import Sequence

MEMORY = ("/release_memory_occupation", "/resume_memory_occupation")


class ScriptedMemory:
    """`saver`: started with --enable-memory-saver. Without it every order is answered and nothing is released, but a
    resume of what no release named ends the server all the same."""

    def __init__(self, saver: bool) -> None:
        self.released: set[str] = set()
        """Without the saver it holds all of it none the less."""
        self._saver = saver

    @property
    def missing(self) -> set[str]:
        return self.released if self._saver else set()

    def survives(self, path: str, tags: Sequence[str], is_idle: bool) -> bool:
        """Carries the order out; False where it ends the server."""
        if path == "/release_memory_occupation":
            self.released |= set(tags)
            return is_idle
        known = self.released.issuperset(tags)
        self.released -= set(tags)
        return known
