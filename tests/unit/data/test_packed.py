"""Packed stores as a trainer has them: read on demand, refused where they are damaged or were made for another run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_urpo.config.data import Phase
from megatron_urpo.config.reward import TemplateConfig
from megatron_urpo.data import shards
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.manifest import check_made_for, read_manifest
from megatron_urpo.data.rows import to_row
from megatron_urpo.data.store import load_prompts, write_store
from megatron_urpo.data.store_schema import PACKED_SCHEMA
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.types import InstructionPrompt, Message, Prompt
from tests.support.full_disk import full_disk
from tests.support.packing import packed, write_tokenizer
from tests.support.published import write_jsonl

LIMITS = {"reasoning": 4096, "preference": 16384, "instruction": 4096}


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {i}?", "chosen": f"yes {name} {i}", "rejected": "no"} for i in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Prompt]]:
    """A store of two weighted preference sources and one of reasoning, and its prompts by id."""
    folder = tmp_path_factory.mktemp("packed")
    write_tokenizer(folder / "tokenizer")
    files = {name: write_jsonl(folder / f"{name}.jsonl", rows(name, count)) for name, count in (("x", 300), ("y", 40))}
    answers = write_jsonl(folder / "z.jsonl", [{"prompt": f"z {i}?", "answer": i} for i in range(50)])
    pairs = ({"dataset": "prompt_chosen_rejected", "path": str(file), "name": name, "weight": weight}
             for (name, file), weight in zip(files.items(), (0.25, 0.75), strict=True))  # fmt: skip
    prompts, _ = packed(folder, *pairs, {"dataset": "prompt_answer", "path": str(answers)}, duplicates={"near": 0})
    return folder / "store", prompts


def test_rows_are_read_when_they_are_asked_for(made: tuple[Path, dict[str, Prompt]]) -> None:
    store, prompts = made
    table = load_prompts([store])
    assert not table.has_code_tests()
    assert len(table) == 390
    assert [table[i].id for i in (0, 200, 389)] == table.column("id").take([0, 200, 389]).to_pylist()
    assert table[-1] == table[389] == prompts[table[389].id]
    assert table[1:3] == [table[1], table[2]]
    with pytest.raises(IndexError):
        table[390]
    files = shards.PackedRows(store, read_manifest(store))
    files.row(250)
    assert list(files._groups) == [(0, 250 // shards.GROUP_ROWS)], "one row group and no other"


def some_rows(count: int) -> Any:
    prompts = [InstructionPrompt(f"p/{i}", (Message("user", f"Question {i}?"),)) for i in range(count)]
    return pyarrow.Table.from_pylist([to_row(prompt) | {"num_tokens": 9} for prompt in prompts], schema=PACKED_SCHEMA)


def test_shards_are_the_same_however_their_rows_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 100)
    table, written = some_rows(250), []
    for size in (250, 100, 7):
        (folder := tmp_path / str(size)).mkdir()
        with shards.ShardWriter(folder) as writer:
            for start in range(0, 250, size):
                writer.write(table.slice(start, size))
        written.append(writer.shards)
        digests = [hashlib.sha256((folder / shard.file).read_bytes()).hexdigest() for shard in writer.shards]
        assert digests == [shard.sha256 for shard in writer.shards]
        assert pyarrow.concat_tables(pyarrow.parquet.read_table(folder / s.file) for s in writer.shards).equals(table)
    assert [shard.rows for shard in written[0]] == [100, 100, 50]
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("count", [250, 50])
def test_a_shard_that_does_not_fit_on_the_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Be it the first or the last."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 100)
    table = some_rows(count)
    with full_disk(500), pytest.raises(OSError, match=r"(?i)file too large"), shards.ShardWriter(tmp_path) as writer:
        writer.write(table)


def test_weighted_sources_mix_exactly_and_resume(made: tuple[Path, dict[str, Prompt]]) -> None:
    store, _ = made
    phases = [Phase(mix={"preference": 2, "reasoning": 1})]

    def stream() -> PromptStream:
        return PromptStream(load_prompts([store]), phases, 10, 3)

    whole = stream()
    batches = [[prompt.id for prompt in whole.next_batch(step)] for step in range(12)]
    drawn = [name.split("/")[0] for batch in batches for name in batch]
    for number in range(1, len(drawn) + 1):
        pairs = [name for name in drawn[:number] if name in "xy"]
        assert abs(len(pairs) - number * 2 / 3) < 1
        assert abs(pairs.count("x") - len(pairs) / 4) < 1
    # 60 of y were drawn: its first epoch of 40 has each once.
    ys = [name for batch in batches for name in batch if name.startswith("y/")]
    assert len(ys) == 60
    assert len(set(ys[:40])) == 40
    for stop in range(12):
        first = stream()
        for step in range(stop):
            first.next_batch(step)
        state = json.loads(json.dumps(first.state()))
        assert len(json.dumps(state)) < 400
        second = stream()
        second.load_state(state)
        assert [prompt.id for prompt in second.next_batch(stop)] == batches[stop]


def test_stores_beside_each_other(made: tuple[Path, dict[str, Prompt]], tmp_path: Path) -> None:
    store, _ = made
    other = tmp_path / "own.jsonl"
    write_store(other, [InstructionPrompt("own", (Message("user", "?"),))])
    table = load_prompts([store, other])
    assert table[len(table) - 1].id == "own"
    assert {task: {name: len(rows) for name, rows in sources.items()} for task, sources in table.pools().items()} == {
        "reasoning": {"prompt_answer": 50},
        "preference": {"x": 300, "y": 40},
        "instruction": {"": 1},
    }
    with pytest.raises(DataError, match="ids are unique"):
        load_prompts([store, store])
    write_jsonl(other, [{"id": "p", "task": "preference", "messages": [{"role": "user", "content": "?"}],
                         "responses": ["a", "b"], "scores": [1, 0]}])  # fmt: skip
    with pytest.raises(DataError, match="packed with weights for the sources of preference"):
        PromptStream(load_prompts([store, other]), [Phase(mix={"reasoning": 1})], 2, 0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", b"{", "is damaged or of another version"),
        ("manifest.json", b"[]", "is damaged or of another version"),
        ("manifest.json", b'{"format": "x"}', "is damaged or of another version"),
        ("manifest.json", None, "has no manifest.json"),
        ("shard_00000.parquet", None, "is missing, manifest.json says"),
        ("shard_00000.parquet", b"short", "has 5 bytes, manifest.json says"),
        ("shard_00000.parquet", "same size", "is no shard of this store"),
    ],
)
def test_damaged_stores(
    made: tuple[Path, dict[str, Prompt]], tmp_path: Path, file: str, content: bytes | str | None, message: str
) -> None:
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / file).unlink()
    else:
        size = (tmp_path / file).stat().st_size
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else b"x" * size)
    with pytest.raises(DataError, match=message):
        load_prompts([tmp_path])


def test_a_store_that_was_made_for_another_run(made: tuple[Path, dict[str, Prompt]]) -> None:
    store, _ = made
    manifest = read_manifest(store)
    identity = {name: manifest.tokenizer[name] for name in ("hash", "chat_template")}
    template = TemplateConfig().model_dump()

    def refusal(tokenizer: dict[str, str], template: dict[str, str], limits: dict[str, int]) -> str:
        with pytest.raises(DataError) as caught:
            check_made_for(manifest, store, tokenizer, template, limits)
        return str(caught.value)

    check_made_for(manifest, store, identity, template, LIMITS)
    assert "another tokenizer (" in refusal(identity | {"hash": "0" * 64}, template, LIMITS)
    assert "another chat template (" in refusal(identity | {"chat_template": "0" * 64}, template, LIMITS)
    assert "another scoring prompt" in refusal(identity, template | {"prompt": "{question}{responses}"}, LIMITS)
    longest = manifest.longest("preference")
    check_made_for(manifest, store, identity, template, LIMITS | {"preference": longest})
    said = refusal(identity, template, LIMITS | {"preference": longest - 1})
    assert f"up to {longest} tokens, referee.max_prompt_tokens is {longest - 1}" in said
    assert "rollout.max_prompt_tokens is 3" in refusal(identity, template, LIMITS | {"reasoning": 3})
