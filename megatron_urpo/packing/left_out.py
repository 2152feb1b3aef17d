"""What is not in the store: rows that do not fit (rejected.jsonl) and those left out on purpose (removed.jsonl)."""

import json
import shutil
from collections import Counter
from pathlib import Path

from megatron_urpo.data.errors import DataError
from megatron_urpo.packing.plan import InputFile, Plan
from megatron_urpo.packing.rows import Left

REJECTED, REMOVED = "rejected.jsonl", "removed.jsonl"
_MAX_REASONS = 3


class LeftOut:
    """Writes one line a row, {source, file, line, cause, detail}, and counts by source and cause."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._rejected_file = folder / REJECTED
        self._rejected = self._rejected_file.open("w", encoding="utf-8")
        self._removed = (folder / REMOVED).open("w", encoding="utf-8")
        self._reasons: list[Counter[str]] = [Counter() for _ in plan.config.sources]
        self.num_read: list[int] = [0] * len(plan.config.sources)
        self.counts: list[Counter[str]] = [Counter() for _ in plan.config.sources]

    def add(self, file: InputFile, left: Left) -> None:
        self.count(file.source, left.cause)
        line = {
            "source": self._plan.config.sources[file.source].name,
            "file": str(file.path),
            "line": left.number,
            "cause": left.cause,
            "detail": left.detail,
        }
        out = self._rejected if left.cause == "rejected" else self._removed
        out.write(json.dumps(line, ensure_ascii=True) + "\n")
        if left.cause == "rejected":
            self._reasons[file.source][f"{file.path}:{left.number}: {left.detail}"[:300]] += 1
            if len(self._reasons[file.source]) > _MAX_REASONS:
                self._reasons[file.source].popitem()

    def count(self, source: int, cause: str, number: int = 1) -> None:
        self.counts[source][cause] += number

    def check_rejected(self, source: int) -> None:
        """Raises DataError where a source has too many rows that do not fit; they are then kept beside the output."""
        config, name = self._plan.config, self._plan.config.sources[source].name
        rejected, total = self.counts[source]["rejected"], self.num_read[source]
        if rejected <= config.max_rejected_fraction * total:
            return
        kept = config.output.with_name(f"{config.output.name}.{REJECTED}")
        self._rejected.flush()
        shutil.copyfile(self._rejected_file, kept)
        examples = "; ".join(self._reasons[source])
        raise DataError(
            f"sources: {name}: {rejected} of {total} rows do not fit ({rejected / total:.1%}, max_rejected_fraction is"
            f" {config.max_rejected_fraction:.1%}), all of them in {kept}, e.g. {examples}; is it this dataset? If so,"
            " raise max_rejected_fraction"
        )

    def summary(self) -> str:
        """What became of the rows, source by source, on one line."""
        return "; ".join(
            f"{source.name}: {read} rows" + "".join(f", {number} {cause}" for cause, number in sorted(counts.items()))
            for source, read, counts in zip(self._plan.config.sources, self.num_read, self.counts, strict=True)
        )

    def close(self) -> None:
        self._rejected.close()
        self._removed.close()
