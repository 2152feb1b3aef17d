"""Run folders as they are found: finished, going on, killed, damaged, empty."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from megatron_urpo.cli import main
from megatron_urpo.reporting.report import ReportError, write_report
from megatron_urpo.reporting.report.page import page_data
from megatron_urpo.reporting.report.read import read_run
from tests.report import runs


def test_reads_what_was_written(tmp_path: Path) -> None:
    run = read_run(runs.write_run(tmp_path / "run", num_steps=3))
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3]
    assert list(run.transcripts) == [1, 2, 3]
    assert run.setting("referee", "score_range") == [0, 9]
    assert run.setting("referee", "nothing") is None
    assert run.notices == []


def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=3)
    for file in (path / "metrics.jsonl", path / "transcripts" / "step_000003.jsonl"):
        file.write_bytes(file.read_bytes()[:-9])
    data = page_data(read_run(path))
    assert data["training"]["steps"] == [1, 2]
    assert [kept["of"] for kept in data["sample"]["kept"]] == [11, 12, 12]
    assert len([notice for notice in data["notices"] if "cut off in the middle" in notice]) == 2


@pytest.mark.parametrize(
    "line", ["not json", "[1, 2]", '{"step": true}', '{"no": 1}', "[" * 100_000, '{"step": -1}', "\ufffd"]
)
def test_a_damaged_line_is_left_out_and_told(tmp_path: Path, line: str) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=2)
    metrics = path / "metrics.jsonl"
    metrics.write_text(line + "\n" + metrics.read_text())
    data = page_data(read_run(path))
    assert data["training"]["steps"] == [1, 2]
    assert len(data["notices"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"completions": 5}, {"task": None}, {"prompt": {}}, {"judgements": [{}]}, {"group": "first"},
        {"completions": [{"text": 7}]},
        {"judgements": [runs.judgement([0, 9], None, 1)]}, {"judgements": [runs.judgement([1, 0], [1.0, 2.0], 1)]},
        {"task": "preference"},
    ],
)  # fmt: skip
def test_a_group_of_another_form_is_left_out_and_told(tmp_path: Path, change: dict[str, object]) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=1)
    row = runs.hostile_group() | change
    runs.write_rows(path / "transcripts" / "step_000001.jsonl", [runs.hostile_group(7), row])
    data = page_data(read_run(path))
    assert [group["group"] for group in data["sample"]["groups"]] == [7]
    assert any("another form" in notice for notice in data["notices"])


def test_values_that_are_not_finite_are_holes(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=2)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "policy/loss": NaN, "policy/entropy": null, "policy/lr": 1' + "0" * 400 + "}\n")
    series = page_data(read_run(path))["training"]["series"]
    assert [series[f"policy/{name}"][2] for name in ("loss", "entropy", "lr")] == [None, None, None]


def test_damaged_config_and_environment_are_told(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=2)
    (path / "config.yaml").write_text("num_steps: [1,\n")
    (path / "environment.json").write_text('{"world_size": NaN}')
    data = page_data(read_run(path))
    assert data["run"]["num_steps"] is None
    assert data["run"]["phase_starts"] == []
    assert len(data["notices"]) == 2


def test_only_step_zero(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=2)
    runs.write_rows(path / "metrics.jsonl", [{"step": 0, **runs.held_out(0)}])
    for file in (path / "transcripts").iterdir():
        file.unlink()
    data = page_data(read_run(path))
    assert data["training"] == {"steps": [], "series": {}, "per_point": 1}
    assert data["evaluation"]["steps"] == [0]
    assert data["sample"]["groups"] == data["findings"] == data["time"]["steps"] == []


def test_command_names_the_file_it_wrote(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=2)
    result = CliRunner().invoke(main, ["report", str(path)])
    assert (result.exit_code, result.stdout.strip()) == (0, str(path / "report.html"))
    elsewhere = tmp_path / "elsewhere.html"
    assert CliRunner().invoke(main, ["report", str(path), "-o", str(elsewhere)]).exit_code == 0
    assert elsewhere.stat().st_size == (path / "report.html").stat().st_size


@pytest.mark.parametrize("kind", ["missing", "empty", "a file", "another folder"])
def test_no_run_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "a file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "another folder":
        (path / "notes.json").write_text("{}")
    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert not (path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=1)
    with pytest.raises(ReportError, match=r"cannot be written .*--output"):
        write_report(path, tmp_path / "no" / "such" / "folder.html")


def test_the_file_is_ascii_and_ends_no_element_early(tmp_path: Path) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=1)
    runs.write_rows(path / "transcripts" / "step_000001.jsonl", [runs.hostile_group()])
    text = write_report(path).read_bytes().decode("ascii")
    assert text.count("<script") == text.count("</script>") == 2
    embedded = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    group = json.loads(embedded)["sample"]["groups"][0]
    assert [one["text"] for one in group["completions"]][:5] == list(runs.HOSTILE)
