"""Whether the longest sample fits: rules between the config's limits on tokens and the model's context."""

from megatron_urpo.algorithm.alignment import round_up, token_alignment
from megatron_urpo.config import Config, ConfigError
from megatron_urpo.policy.hf.shape import ModelShape


def check_lengths(config: Config, shape: ModelShape) -> None:
    """Raises ConfigError where the longest sample would fit neither the model's context nor a micro-batch."""
    sums = {
        "rollout": (config.rollout.max_prompt_tokens, config.rollout.max_new_tokens),
        "referee": (config.referee.max_prompt_tokens, config.referee.max_new_tokens),
    }
    recipe = None if config.fp8.format == "none" else config.fp8.recipe
    align = token_alignment(recipe, config.parallel.tensor, config.parallel.sequence)
    for section, (prompt, new) in sums.items():
        if prompt + new > shape.max_positions:
            raise ConfigError(
                f"{section}.max_prompt_tokens: {prompt} + {section}.max_new_tokens {new} = {prompt + new} is above the"
                f" model's context of {shape.max_positions} tokens (max_position_embeddings); lower one of them"
            )
        padding = round_up(prompt + new, align) - prompt - new
        if prompt + new + padding > config.loss.max_tokens_per_micro_batch:
            padded = f" + {padding} of padding" if padding else ""
            raise ConfigError(
                f"loss.max_tokens_per_micro_batch: {config.loss.max_tokens_per_micro_batch} is below {section}."
                f"max_prompt_tokens {prompt} + {section}.max_new_tokens {new}{padded} = {prompt + new + padding};"
                " a micro-batch must hold the longest sample; raise it or lower those"
            )
