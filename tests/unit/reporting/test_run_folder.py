import json
from pathlib import Path

import pytest

from megatron_urpo.reporting.batches import Origin
from megatron_urpo.reporting.run_folder import RunFolder, environment


def steps(folder: RunFolder) -> list[int]:
    return [row["step"] for row in folder.read_metrics()]


def test_a_folder_from_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.write_config("seed: 0  # default\n")
    folder.write_environment(world_size=4, devices=["NVIDIA H100"])
    assert (folder.path / "config.yaml").read_text() == "seed: 0  # default\n"
    written = json.loads((folder.path / "environment.json").read_text())
    assert written["world_size"] == 4
    assert written["devices"] == ["NVIDIA H100"]
    assert written["packages"]["torch"]
    assert {"commit", "python", "platform", "processor", "num_cpus"} <= set(written)
    assert steps(folder) == []


def test_an_image_knows_its_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MEGATRON_URPO_COMMIT", "0123abc")
    assert environment(1, [])["commit"] == "0123abc"
    monkeypatch.delenv("MEGATRON_URPO_COMMIT")
    assert environment(1, [])["commit"] is None


def test_one_line_a_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics(0, {"eval/x": 0.5, "bad": float("nan"), "worse": float("inf")})
    folder.append_metrics(1, {"loss": -1e-9})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 0, "eval/x": 0.5, "bad": null, "worse": null}', '{"step": 1, "loss": -1e-09}']
    assert folder.read_metrics()[0]["eval/x"] == 0.5


def test_resume_forgets_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(5):
        folder.append_metrics(step, {"x": step})
        folder.transcript_file(step).write_text("{}\n")
        folder.batches.write(step, (), Origin({}, 1, 1, "cpu"))
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()[:3]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "x"')
    assert steps(folder) == [0, 1, 2, 3, 4]
    folder.truncate_after(2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == kept
    assert sorted(file.name for file in folder.transcripts.iterdir()) == [f"step_00000{i}.jsonl" for i in range(3)]
    assert folder.batches.steps() == [0, 1, 2]
    folder.append_metrics(3, {"x": 9})
    assert steps(folder) == [0, 1, 2, 3]


def test_a_torn_line_alone_is_forgotten_at_its_own_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1')
    folder.truncate_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is not a JSON object"):
        folder.truncate_after(2)


def test_an_old_folder_is_opened_as_it_is(tmp_path: Path) -> None:
    RunFolder(tmp_path).append_metrics(0, {})
    folder = RunFolder(tmp_path)
    folder.truncate_after(-1)
    assert steps(folder) == []
