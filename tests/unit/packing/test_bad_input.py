"""What is wrong with files, rows or config, through the real command: one clear line or a counted reject, no traceback,
nothing half-written, never a wrong row in the store."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from megatron_urpo.cli import main
from megatron_urpo.data.store import load_prompts
from tests.support import published as p
from tests.support.full_disk import full_disk
from tests.support.packing import left_out, write_tokenizer
from tests.support.published import turns, write_jsonl, write_parquet

GOOD = {"prompt": "What is 6 times 7?", "answer": "42"}
PAIR: dict[str, Any] = {"prompt": "Why?", "responses": ["because", "no"], "scores": [1, 0]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def run(folder: Path, chat: Path, *sources: dict[str, Any], **values: Any) -> tuple[int, str]:
    tree = {"output": str(folder / "store"), "tokenizer": str(chat), "processes": 1, "sources": list(sources)}
    (folder / "pack.yaml").write_text(yaml.safe_dump({**tree, **values}))
    result = CliRunner().invoke(main, ["pack", str(folder / "pack.yaml")])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stderr


def refusal(folder: Path, chat: Path, *sources: dict[str, Any], **values: Any) -> str:
    """The line of a refused run, which left nothing behind."""
    (folder / "pack.yaml").touch()
    (folder / "store.rejected.jsonl").unlink(missing_ok=True)
    before = set(folder.iterdir())
    code, said = run(folder, chat, *sources, **values)
    assert code == 2, said
    assert {path for path in folder.iterdir() if path.name != "store.rejected.jsonl"} == before
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


def source(file: Path, dataset: str = "prompt_answer", **values: Any) -> dict[str, Any]:
    return {"dataset": dataset, "path": str(file), **values}


def raw(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def line(row: object) -> bytes:
    return json.dumps(row).encode()


# ------------------------------------------------------------------------------- rows, each counted as rejected
BAD_LINES: list[tuple[str, bytes, str, str]] = [
    ("broken JSON", b'{"prompt": "What', "prompt_answer", "not JSON"),
    ("wrong encoding", '{"prompt": "café?", "answer": "1"}'.encode("latin-1"), "prompt_answer", "not UTF-8"),
    ("raw NUL bytes", b'{"prompt": "a\0b", "answer": "1"}', "prompt_answer", "not JSON"),
    ("escaped NUL", line(GOOD | {"prompt": "a\0b"}), "prompt_answer", "NUL character"),
    ("NUL in an answer", line(GOOD | {"answer": "4\0"}), "prompt_answer", "NUL character"),
    ("half a surrogate pair", b'{"prompt": "a\\ud800", "answer": "1"}', "prompt_answer", "not valid Unicode"),
    ("not an object", b"[1, 2]", "prompt_answer", "the row is list"),
    ("another type", line(GOOD | {"prompt": 5}), "prompt_answer", "prompt"),
    ("missing truth", line({"prompt": "x"}), "prompt_answer", "answer is missing"),
    ("empty truth", line(GOOD | {"answer": " "}), "prompt_answer", "none empty"),
    ("not a number", b'{"prompt": "x", "responses": ["a", "b"], "scores": [NaN, 1]}', "prompt_responses", "finite"),
    ("empty ranking", line(PAIR | {"scores": []}), "prompt_responses", "has 0 for 2 responses"),
    ("no ranking", line(PAIR | {"scores": None}), "prompt_responses", "neither scores nor ranks"),
    ("one candidate", line(PAIR | {"responses": ["a"], "scores": [1]}), "prompt_responses", "has 1; a ranking needs 2"),
    ("no candidate", line(PAIR | {"responses": [], "scores": []}), "prompt_responses", "has 0; a ranking needs 2"),
    ("equal candidates", line(PAIR | {"responses": ["a", "a"]}), "prompt_responses", "all responses are the same text"),
    ("a null candidate", line(PAIR | {"responses": ["a", None]}), "prompt_responses", "responses.1: is missing"),
    ("ends with an answer", line({"messages": turns("a", "b")[1:]}), "messages", "the last one is from"),
    ("an unknown role", line({"messages": [{"role": "human", "content": "a"}]}), "messages", "'human'; use one of"),
    ("what the template refuses", line({"messages": [*turns("a"), {"role": "system", "content": "s"}, *turns("c")]}),
     "messages", "chat template: refuses"),
    ("deep nesting", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "prompt_answer", "not JSON"),
]  # fmt: skip


def test_bad_rows_are_counted_and_good_ones_beside_them_kept(tmp_path: Path, tokenizer: Path) -> None:
    good = {"prompt_answer": line(GOOD), "prompt_responses": line(PAIR), "messages": line({"messages": turns("Hi.")})}
    sources = []
    for dataset, fine in good.items():
        bad = [text for _, text, of, _ in BAD_LINES if of == dataset]
        separated = [text for item in bad for text in (item, b"")]
        file = raw(
            tmp_path / f"{dataset}.jsonl",
            *separated,
            fine,
        )
        sources.append(source(file, dataset))
    code, said = run(tmp_path, tokenizer, *sources, max_rejected_fraction=1)
    assert code == 0, said
    ids = [prompt.id for prompt in load_prompts([tmp_path / "store"])]
    numbers = {dataset: sum(of == dataset for _, _, of, _ in BAD_LINES) for dataset in good}
    assert sorted(ids) == sorted(f"{dataset}/{dataset}/{2 * number + 1}" for dataset, number in numbers.items())
    rejected = left_out(tmp_path)
    expected = [(of, reason) for dataset in good for _, _, of, reason in BAD_LINES if of == dataset]
    assert len(rejected) == len(expected)
    for row, (dataset, reason) in zip(
        sorted(rejected, key=lambda r: list(good).index(r["source"])), expected, strict=True
    ):
        assert row["source"] == dataset
        assert reason in row["detail"]
        assert len(row["detail"]) < 500
        assert row["file"].endswith(f"{dataset}.jsonl")


def test_a_row_of_50_mb(tmp_path: Path, tokenizer: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(line(GOOD) + b'\n{"answer": "1", "prompt": "')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n')
    code, said = run(tmp_path, tokenizer, source(tmp_path / "a.jsonl"), max_rejected_fraction=0.5)
    assert code == 0, said
    assert [prompt.id for prompt in load_prompts([tmp_path / "store"])] == ["prompt_answer/a/1"]
    (rejected,) = left_out(tmp_path)
    assert (rejected["line"], rejected["detail"]) == (2, "the row is longer than max_row_mib")
    # From Parquet the same.
    write_parquet(tmp_path / "b.parquet", [GOOD, GOOD | {"prompt": "x" * (2 << 20)}])
    code, _ = run(tmp_path, tokenizer, source(tmp_path / "b.parquet"), max_rejected_fraction=0.5, overwrite=True,
                  max_row_mib=1)  # fmt: skip
    assert code == 0
    assert left_out(tmp_path)[0]["detail"] == "the row is longer than max_row_mib"


def test_too_many_rejects_stop_the_run_and_are_kept(tmp_path: Path, tokenizer: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [GOOD] * 3 + [{"prompt": "x"}] * 2)
    said = refusal(tmp_path, tokenizer, source(file), max_rejected_fraction=0.3)
    assert "prompt_answer: 2 of 5 rows do not fit (40.0%, max_rejected_fraction is 30.0%)" in said
    assert f"{file}:4: answer is missing" in said
    kept = [json.loads(text) for text in (tmp_path / "store.rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in kept] == [4, 5]
    # A small source cannot hide behind a large one.
    large = write_jsonl(tmp_path / "large.jsonl", [GOOD | {"prompt": f"{i}?"} for i in range(300)])
    assert "prompt_answer: 2 of 5" in refusal(
        tmp_path, tokenizer, source(large, name="large"), source(file), max_rejected_fraction=0.3
    )


# ------------------------------------------------------------------------------------ files and configs, refused
def test_files_that_cannot_be_read(tmp_path: Path, tokenizer: Path) -> None:
    whole = gzip.compress(b"".join(line(GOOD | {"prompt": f"{i}?"}) + b"\n" for i in range(999)))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert f"{cut}: cannot be read" in refusal(tmp_path, tokenizer, source(cut))
    array = raw(tmp_path / "a.json", b"[" + line(GOOD) + b", {oops}, " + line(GOOD) + b"]")
    assert f"{array}: row 2: is not JSON" in refusal(tmp_path, tokenizer, source(array))
    parquet = write_parquet(tmp_path / "b.parquet", p.GSM8K)
    said = refusal(tmp_path, tokenizer, source(parquet, "helpsteer3"))
    assert "has columns question, answer, but no context, response1" in said
    typed = write_parquet(tmp_path / "c.parquet", [{"prompt": 1, "answer": "2"}])
    assert "1 of 1 rows do not fit" in refusal(tmp_path, tokenizer, source(typed))
    utf16 = tmp_path / "d.jsonl"
    utf16.write_text(json.dumps(GOOD), encoding="utf-16")
    assert "is UTF-16" in refusal(tmp_path, tokenizer, source(utf16))


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    return source(write_jsonl(tmp_path / "rows.jsonl", [GOOD]))


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        ({"dataset": "prompt_anwser"}, {}, "'prompt_anwser' has no reader; did you mean `prompt_answer`"),
        ({"path": "nowhere/*.jsonl"}, {}, "sources.0.path: nowhere/*.jsonl finds no file"),
        ({"task": "preference"}, {}, "sources.0.task: prompt_answer gives reasoning prompts"),
        ({"task": "reasonning"}, {}, "sources.0.task"),
        ({"columns": {"question": "q"}}, {}, "sources.0.columns: 'question' is no field of prompt_answer rows"),
        ({"filters": [{"field": "a"}]}, {}, "give one_of, min or max"),
        ({"limit": 0}, {}, "sources.0.limit"),
        ({"weigth": 1}, {}, "sources.0.weigth: unknown key; did you mean `weight`"),
        ({"weight": 0}, {}, "the weights of the reasoning sources sum to 0"),
        ({"weight": -1}, {}, "sources.0.weight"),
        ({}, {"sources": []}, "sources: is empty"),
        ({}, {"max_candidates": 1}, "max_candidates"),
        ({}, {"tokenizer": "nowhere"}, "tokenizer: nowhere is no folder"),
        ({}, {"decontaminate_against": [{"dataset": "gsm8k", "path": "none.jsonl"}]}, "decontaminate_against.0.path"),
    ],
)  # fmt: skip
def test_wrong_values(
    tmp_path: Path, tokenizer: Path, rows: dict[str, Any], change: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    assert message in refusal(tmp_path, tokenizer, {**rows, **change}, **values)


def test_weights_and_names_of_several_sources(tmp_path: Path, tokenizer: Path, rows: dict[str, Any]) -> None:
    assert "two are called 'prompt_answer'" in refusal(tmp_path, tokenizer, rows, rows)
    named = rows | {"name": "other"}
    assert "prompt_answer has a weight and other has none" in refusal(tmp_path, tokenizer, rows | {"weight": 1}, named)
    said = refusal(tmp_path, tokenizer, rows | {"weight": 0}, named | {"weight": 0})
    assert "weights of the reasoning sources sum to 0" in said


def test_tokenizers_that_cannot_be_used(tmp_path: Path, rows: dict[str, Any]) -> None:
    bare = write_tokenizer(tmp_path / "bare", template=None)
    assert f"tokenizer: {bare} has no chat template" in refusal(tmp_path, bare, rows)


def test_outputs_that_are_there(tmp_path: Path, tokenizer: Path, rows: dict[str, Any]) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").touch()
    assert "exists and is no packed store" in refusal(tmp_path, tokenizer, rows, overwrite=True)
    (tmp_path / "store" / "thesis.txt").unlink()
    (tmp_path / "store").rmdir()
    assert run(tmp_path, tokenizer, rows)[0] == 0
    assert "exists; set overwrite to true" in refusal(tmp_path, tokenizer, rows)
    assert run(tmp_path, tokenizer, rows, overwrite=True)[0] == 0


def test_outputs_that_cannot_be_written(tmp_path: Path, tokenizer: Path, rows: dict[str, Any]) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(tmp_path, tokenizer, rows, output=str(tmp_path / "file" / "store"))


def test_a_full_disk(tmp_path: Path, tokenizer: Path) -> None:
    rows = source(write_jsonl(tmp_path / "many.jsonl", [GOOD | {"prompt": f"{i} times 7?"} for i in range(500)]))
    with full_disk(10_000):
        said = refusal(tmp_path, tokenizer, rows)
    assert f"output: {tmp_path / 'store'} does not fit on its disk" in said


def test_a_store_of_nothing_is_not_written(tmp_path: Path, tokenizer: Path) -> None:
    file = raw(tmp_path / "empty.jsonl", b"")
    assert "nothing is left to pack (prompt_answer: 0 rows)" in refusal(tmp_path, tokenizer, source(file))
    file = write_jsonl(tmp_path / "long.jsonl", [GOOD | {"prompt": "x" * 5000}])
    assert "(prompt_answer: 1 rows, 1 too_long)" in refusal(tmp_path, tokenizer, source(file))
