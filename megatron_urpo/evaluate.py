"""Evaluation of a Hugging Face folder by itself, without a trainer."""

import contextlib
import json
import sys
from functools import partial

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.evaluation.held_out import evaluate
from megatron_urpo.loop.engines import DTYPES, open_engine
from megatron_urpo.policy.weights.kinds import open_weights
from megatron_urpo.preflight.inputs import check_inputs
from megatron_urpo.reward.verifiable.verifier import RuleVerifier


def evaluate_folder(config: Config) -> str:
    """Metrics of the model in `config.model.path` on the held-out prompts, as one JSON object."""
    inputs = check_inputs(config)
    if not inputs.held_out:
        raise ConfigError("evaluation.data: is empty; give held-out prompt stores to evaluate on")
    weights = open_weights(config.model.path, inputs.shape)
    dtype = DTYPES[config.model.dtype]
    tell = partial(print, file=sys.stderr)
    verifier = RuleVerifier(config.verifier)
    opened = open_engine(config, inputs.shape, inputs.tokenizer.stop_token_ids, tell)
    with contextlib.closing(verifier), opened as (engine, receiver):
        named = ((name, weights.hf_tensor(name).to(dtype)) for name in weights.shapes)
        receiver.update_weights(named, version=0)
        return json.dumps(evaluate(engine, inputs.tokenizer, verifier, inputs.held_out, config), indent=2)
