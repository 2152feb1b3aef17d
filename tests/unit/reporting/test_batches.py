"""Kept batches come back exactly or not at all."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_urpo.config import ConfigError
from megatron_urpo.reporting.batches import Batch, Batches, Origin
from megatron_urpo.types import TASKS, Sample

ORIGIN = Origin(config={"seed": 1, "model": {"path": "m"}}, world_size=2, num_threads=1, device="cpu")
TWO = (
    Sample(0, "reasoning", (5, 6, 7), (8, 9), 0.1, (-0.5, -1.25)),
    Sample(0, "reasoning", (5, 6, 7), (8,), -1 / 3, (-2.0,)),
)
FLOAT32 = st.floats(width=32, allow_nan=False)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    completion = draw(TOKENS)
    return Sample(
        group=draw(st.integers(0, 10**6)),
        task=draw(st.sampled_from(TASKS)),
        prompt_ids=draw(TOKENS),
        completion_ids=completion,
        advantage=draw(st.floats(allow_nan=False)),
        rollout_logprobs=tuple(draw(st.lists(FLOAT32, min_size=len(completion), max_size=len(completion)))),
    )


@given(st.lists(samples(), max_size=6))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]) -> None:
    kept = Batches(tmp_path_factory.mktemp("run"))
    kept.write(7, written, ORIGIN)
    assert kept.read(7) == Batch(7, tuple(written), ORIGIN)


def test_values_that_are_not_finite_are_kept_as_they_are(tmp_path: Path) -> None:
    Batches(tmp_path).write(1, [Sample(0, "preference", (1,), (2, 3), float("inf"), (float("nan"), -1.0))], ORIGIN)
    (sample,) = Batches(tmp_path).read(1).samples
    assert sample.advantage == float("inf")
    assert np.isnan(sample.rollout_logprobs[0])


def test_a_prompt_is_stored_once_and_a_token_takes_eight_bytes(tmp_path: Path) -> None:
    """Of 8 completions with a prompt of 4,000 tokens: 4 bytes for an id and 4 for a log-probability, and a header."""
    prompt, completion = tuple(range(4000)), tuple(range(500))
    group = [Sample(0, "preference", prompt, completion, float(i), (-1.0,) * 500) for i in range(8)]
    Batches(tmp_path).write(1, group, ORIGIN)
    size = (tmp_path / "batches" / "step_000001.npz").stat().st_size
    assert size < 4 * 4000 + 8 * 500 * 8 + 4000


def read_or_refusal(kept: Batches) -> Batch | str:
    try:
        return kept.read(1)
    except ConfigError as error:
        return str(error)


def test_every_changed_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """A zip file has checksums for its members, not for its own tables: what those let through reads the same."""
    kept = Batches(tmp_path)
    kept.write(1, TWO, ORIGIN)
    path = tmp_path / "batches" / "step_000001.npz"
    whole, refusals = path.read_bytes(), 0
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = read_or_refusal(kept)
        if isinstance(found, str):
            assert found.startswith(f"{path}: is not a whole batch file")
            refusals += 1
        else:
            assert found == Batch(1, TWO, ORIGIN)
    assert refusals > len(whole) / 22


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    kept = Batches(tmp_path)
    kept.write(1, TWO, ORIGIN)
    path = tmp_path / "batches" / "step_000001.npz"
    whole = path.read_bytes()
    for size in range(0, len(whole), 29):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"step_000001.npz: is not a whole batch file; it is damaged"):
            kept.read(1)


def test_a_batch_of_another_format_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Batches(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("megatron_urpo.reporting.batches.FORMAT", 99)  # as a later version will write it
        kept.write(1, TWO, ORIGIN)
    with pytest.raises(ConfigError, match="has format 99, this version reads 1"):
        kept.read(1)


def test_what_stays_and_what_goes(tmp_path: Path) -> None:
    kept = Batches(tmp_path)
    assert kept.steps() == []
    assert not kept.folder.exists()  # looking makes nothing
    for step in range(1, 7):
        kept.write(step, TWO, ORIGIN)
    kept.settle(2, not_finite=True, keep=True)
    kept.settle(3, not_finite=True, keep=False)
    kept.settle(4, not_finite=False, keep=True)
    kept.settle(5, not_finite=False, keep=False)
    assert kept.steps() == [1, 2, 3, 4, 6]
    kept.forget_up_to(4)
    assert kept.steps() == [2, 3, 6]
    assert kept.read(2).samples == TWO
    kept.forget_after(2)
    assert [path.name for path in kept.folder.iterdir()] == ["step_000002.not_finite.npz"]


def test_a_file_that_was_not_finished_is_no_batch(tmp_path: Path) -> None:
    kept = Batches(tmp_path)
    kept.write(1, TWO, ORIGIN)
    (kept.folder / "step_000002.npz.new").write_bytes(b"half")
    assert kept.steps() == [1]
