"""Evaluation of a Hugging Face folder by itself, without a trainer."""

import json

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.evaluate import evaluate
from megatron_urpo.inference.connect import connect
from megatron_urpo.policy.hf.folder import WeightFolder
from megatron_urpo.policy.hf.table import weight_entries
from megatron_urpo.preflight import check_inputs
from megatron_urpo.reward.verifiable.pool import MathVerifier


def evaluate_folder(config: Config) -> str:
    """Metrics of the model in `config.model.path` on the held-out prompts, as one JSON object."""
    inputs = check_inputs(config)
    if not inputs.held_out:
        raise ConfigError("evaluation.data: is empty; give held-out prompt stores to evaluate on")
    weights = WeightFolder(config.model.path)
    names = [name for entry in weight_entries(inputs.shape, "torch") for name in entry.hf]
    engine = connect(config, inputs.tokenizer.stop_token_ids)
    verifier = MathVerifier(config.verifier.workers, config.verifier.timeout_seconds, config.verifier.memory_mib)
    try:
        engine.update_weights(((name, weights[name]) for name in names), version=0)
        return json.dumps(evaluate(engine, inputs.tokenizer, verifier, inputs.held_out, config), indent=2)
    finally:
        verifier.close()
        engine.close()
