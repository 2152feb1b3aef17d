"""A run that begins with a converted checkpoint is the run that begins with the model it was converted from."""

from pathlib import Path

import torch

from megatron_urpo.conversion.convert import hf_to_megatron, megatron_to_hf
from megatron_urpo.conversion.verify import verify
from tests.loop.runs import metrics, train, transcripts, weights
from tests.support.miniature import Miniature


def test_one_step_from_a_converted_folder(miniature: Miniature, tmp_path: Path) -> None:
    """Its tokenizer and chat template come along; its checkpoint goes back to a Hugging Face folder."""
    converted = tmp_path / "converted"
    hf_to_megatron(miniature.seed, converted)
    values = {"num_steps": 1, "checkpoint.every": 1}
    want = train(miniature, tmp_path / "want", **values)
    got = train(miniature, tmp_path / "got", **values, **{"model.path": converted})
    assert metrics(got) == metrics(want)
    assert transcripts(got) == transcripts(want)
    ours, theirs = weights(got), weights(want)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    back = tmp_path / "back"
    megatron_to_hf(tmp_path / "got" / "checkpoints" / "step_000001", back)  # config.yaml leads to `converted`
    assert verify(got / "model", back)[0].lines == []
    assert verify(miniature.seed, back)[0].lines != [], "a step that changes nothing"
