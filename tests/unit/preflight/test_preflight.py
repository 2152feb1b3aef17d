"""A run that names only its files has the recipe's defaults, and they are a run that can begin."""

import json
from pathlib import Path

import yaml

from megatron_urpo.config import load_config
from megatron_urpo.preflight.inputs import check_inputs
from tests.support.world import write_chain_model, write_store


def test_a_config_that_names_a_model_and_prompts_is_enough(tmp_path: Path) -> None:
    """The model's context is that of Qwen2.5's base models."""
    write_chain_model(tmp_path / "model", {})
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 32768}))
    write_store(tmp_path / "train.jsonl")
    named = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": [str(tmp_path / "train.jsonl")]},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(named))
    config, _ = load_config(tmp_path / "config.yaml", [])
    assert check_inputs(config).shape.max_positions == 32768
