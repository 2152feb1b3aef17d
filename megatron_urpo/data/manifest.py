"""manifest.json of a packed store: what is in it, what it was made for and from, and hashes of every byte.

It has no times, hosts or process counts: the same input and config give the same manifest.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_urpo.data.errors import DataError

FILE = "manifest.json"
FORMAT = "megatron_urpo prompt store 1"


@dataclass(frozen=True, slots=True)
class Shard:
    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`counts`, `weights` and `lengths` go by task, then source; `removed` by source, then cause.

    `weights` are as configured, empty where the sources of a task mix by their sizes. `lengths`: for each source
    `num_tokens` summed, the longest, and `histogram[i]` prompts of fewer than 2 ** (i + 1) tokens and at least 2 ** i.
    `tokenizer`: folder, hash of the tokenizer, hash of its chat template. `template`: the scoring prompt's parts.
    """

    shards: tuple[Shard, ...]
    content_hash: str
    counts: dict[str, dict[str, int]]
    weights: dict[str, dict[str, float]]
    lengths: dict[str, dict[str, dict[str, Any]]]
    removed: dict[str, dict[str, int]]
    tokenizer: dict[str, str]
    template: dict[str, str]
    config: dict[str, Any]

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def longest(self, task: str) -> int:
        """Tokens of the longest prompt of a task, 0 where it has none."""
        return max((source["longest"] for source in self.lengths.get(task, {}).values()), default=0)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps({"format": FORMAT} | asdict(manifest), indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store whose shards are there and as long as they were written. Raises DataError."""
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"{folder}: has no {FILE}; a folder is a store that `megatron-urpo pack` wrote")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        manifest = Manifest(**{**tree, "shards": tuple(Shard(**shard) for shard in tree["shards"])})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{file}: is damaged or of another version ({error}); pack the store again") from None
    for shard in manifest.shards:
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(f"{path}: {found}, {FILE} says {shard.bytes}; copy or pack the store again")
    return manifest


def check_content(folder: Path, manifest: Manifest, seen: Callable[[int], None] = lambda _: None) -> None:
    """Raises DataError where a byte of a shard is not the one that was written. `seen` is told the bytes read."""
    for shard in manifest.shards:
        digest = hashlib.sha256()
        with (folder / shard.file).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                seen(len(block))
        if digest.hexdigest() != shard.sha256:
            raise DataError(f"{folder / shard.file}: was changed or damaged after packing; copy or pack it again")


def check_made_for(
    manifest: Manifest,
    place: Path,
    tokenizer: Mapping[str, str],
    template: Mapping[str, str],
    limits: Mapping[str, int],
) -> None:
    """Raises DataError where a run would see other prompts than those whose lengths were measured, or longer ones.

    `limits`: tokens of a prompt of each task that the run takes.
    """
    again = "pack it again with the run's"
    for part, name in (("hash", "tokenizer"), ("chat_template", "chat template")):
        if manifest.tokenizer[part] != tokenizer[part]:
            raise DataError(
                f"{place}: was packed with another {name} ({manifest.tokenizer[part][:12]}, the run's is"
                f" {tokenizer[part][:12]}), so its lengths do not hold; {again} tokenizer"
            )
    if "preference" in manifest.counts and dict(manifest.template) != dict(template):
        raise DataError(f"{place}: was packed with another scoring prompt than referee.template; {again} template")
    fields = {"preference": "referee.max_prompt_tokens"}
    for task, limit in limits.items():
        if manifest.longest(task) > limit:
            field = fields.get(task, "rollout.max_prompt_tokens")
            raise DataError(
                f"{place}: has {task} prompts of up to {manifest.longest(task)} tokens, {field} is {limit}; raise it,"
                " or pack again with a lower max_prompt_tokens"
            )
