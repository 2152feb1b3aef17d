"""What a person sees while a store is packed, and the table at its end."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_urpo.data.manifest import Manifest
from megatron_urpo.packing.plan import Plan
from megatron_urpo.packing.tables import left_out_table


class PackProgress:
    """A bar over the bytes of the input; on something that is no terminal a line for each source."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, console=self._console)
        self._bar = self._progress.add_task("reading", total=sum(file.size for file in plan.files))
        self._starts = [sum(file.size for file in plan.files[:index]) for index in range(len(plan.files))]
        self._source = -1

    def __enter__(self) -> "PackProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def read(self, file: int, position: int, num_rows: int) -> None:
        """`file` was read up to `position`; its source has given `num_rows` rows so far."""
        source = self._plan.files[file].source
        name = self._plan.config.sources[source].name
        if source != self._source and not self._console.is_terminal:
            self._console.print(f"reading {name}", markup=False)
        self._source = source
        self._progress.update(
            self._bar, completed=self._starts[file] + position, description=f"{name}: {num_rows:,} rows"
        )

    def phase(self, name: str) -> None:
        self._progress.update(self._bar, description=name)
        if not self._console.is_terminal:
            self._console.print(name, markup=False)

    def finish(self, manifest: Manifest) -> None:
        self._progress.stop()
        self._console.print(left_out_table(manifest))
        self._console.print(f"{self._plan.config.output}: {manifest.num_rows:,} prompts", markup=False)
