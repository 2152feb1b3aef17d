"""What a person sees of a run: a live line on a terminal, one plain line a step elsewhere."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from megatron_urpo.types import TASKS

RECENT_STEPS = 20  # the estimate of the time left follows the last steps: phases of a curriculum differ in length


class Progress:
    """Progress of a run from step `start` to `num_steps`; a context manager."""

    def __init__(
        self,
        num_steps: int,
        start: int = 0,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._num_steps = num_steps
        self._now = now
        self._last = now()
        self._recent: list[float] = []
        self._summary = ""
        self._live = RichProgress(
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._live.add_task("starting", total=num_steps, completed=start)

    def __enter__(self) -> "Progress":
        self._live.start()
        self._last = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self) -> None:
        """The first step starts now; what came before, such as servers that start, is no part of it."""
        self._last = self._now()

    def phase(self, name: str) -> None:
        """What runs now, e.g. `rollout`; shown on a terminal only."""
        self._live.update(self._task, description=f"{name}  {self._summary}".rstrip())

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` is done."""
        now = self._now()
        self._recent = [*self._recent[-RECENT_STEPS + 1 :], now - self._last]
        self._last = now
        self._summary = step_summary(self._recent, self._num_steps - step, metrics)
        self._live.update(self._task, completed=step, description=self._summary)
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._num_steps}  {self._summary}")

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def step_summary(recent_seconds: list[float], steps_left: int, metrics: Mapping[str, float]) -> str:
    """`0.61 s  reasoning 0.75  preference 0.31  left 0:01:12`."""
    parts = [f"{recent_seconds[-1]:.2f} s"]
    parts += [f"{task} {metrics[name]:.3f}" for task in TASKS if (name := f"reward/mean/{task}") in metrics]
    left = steps_left * sum(recent_seconds) / len(recent_seconds)
    return "  ".join([*parts, f"left {timedelta(seconds=round(left))}"])


def before_after_table(first: Mapping[str, object], last: Mapping[str, object]) -> Table:
    """Every `eval/` metric of two lines of metrics.jsonl, with what changed; a value that is absent shows as a dash."""
    table = Table(title=f"Held-out, step {first.get('step', '?')} and step {last.get('step', '?')}")
    table.add_column("metric")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    names = dict.fromkeys(name for line in (first, last) for name in line if name.startswith("eval/"))
    for name in names:
        before, after = _number(first.get(name)), _number(last.get(name))
        change = None if before is None or after is None else after - before
        table.add_row(name.removeprefix("eval/"), _shown(before), _shown(after), _shown(change, "+.3f"))
    return table


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _shown(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)
