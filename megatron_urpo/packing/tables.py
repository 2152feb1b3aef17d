"""Tables of a packed store."""

from rich.table import Table
from rich.text import Text

from megatron_urpo.data.manifest import Manifest
from megatron_urpo.packing.visible import visible

_BAR = 16


def left_out_table(manifest: Manifest) -> Table:
    """By source: rows read, prompts kept, and what became of the others."""
    causes = sorted({cause for counts in manifest.removed.values() for cause in counts} - {"read"})
    table = Table("source", "rows", "kept", *(cause.replace("_", " ") for cause in causes))
    for column in table.columns[1:]:
        column.justify = "right"
    for source, counts in manifest.removed.items():
        kept = counts["read"] - sum(counts.get(cause, 0) for cause in causes)
        numbers = (counts["read"], kept, *(counts.get(cause, 0) for cause in causes))
        table.add_row(Text(visible(source), overflow="fold"), *(f"{number:,}" for number in numbers))
    return table


def counts_table(manifest: Manifest) -> Table:
    """By task and source: prompts, share of the task in the stream, tokens."""
    table = Table("task", "source", "prompts", "share of task", "mean tokens", "longest")
    for column in table.columns[2:]:
        column.justify = "right"
    for task, sources in manifest.counts.items():
        weights: dict[str, float] = manifest.weights.get(task) or {name: float(n) for name, n in sources.items()}
        total = sum(weights[name] for name in sources)
        for name, count in sources.items():
            length = manifest.lengths[task][name]
            table.add_row(
                task, Text(visible(name), overflow="fold"), f"{count:,}", f"{weights[name] / total:.1%}",
                f"{length['num_tokens'] / count:,.0f}", f"{length['longest']:,}",
            )  # fmt: skip
    return table


def histogram_table(manifest: Manifest) -> Table:
    """Lengths of prompts by task and source, as the model sees them."""
    table = Table("task", "source", "tokens", "prompts", "")
    table.columns[3].justify = "right"
    for task, sources in manifest.lengths.items():
        for name, length in sources.items():
            bins = length["histogram"]
            first = next(place for place, count in enumerate(bins) if count)
            for place in range(first, len(bins)):
                heads = (task, Text(visible(name), overflow="fold")) if place == first else ("", "")
                bar = "█" * round(_BAR * bins[place] / max(bins)) or ("▏" if bins[place] else "")
                table.add_row(*heads, f"{2**place:,} to {2 ** (place + 1) - 1:,}", f"{bins[place]:,}", bar)
            table.add_section()
    return table
