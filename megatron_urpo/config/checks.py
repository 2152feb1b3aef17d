"""Rules that span sections, explained in words with their arithmetic."""

import re

from megatron_urpo.config.engine import ServersConfig
from megatron_urpo.config.schema import Config


class ConfigError(ValueError):
    """A value the user set is wrong: the message names field, value, rule and the way out, on one line."""


def check_config(config: Config) -> None:
    """Raises ConfigError at the first rule that `config` breaks."""
    _check_batch(config)
    _check_curriculum(config)
    _check_referee(config)
    if config.rollout.overlap:
        _check_overlap(config)
    if config.rollout.release_memory:
        _check_release(config)
    if config.rollout.engine == "sglang":
        _check_servers(config, config.rollout.sglang)
    if config.rollout.engine == "vllm":
        _check_servers(config, config.rollout.vllm)
    if config.parallel.sequence and config.parallel.tensor == 1:
        raise ConfigError(
            "parallel.sequence: true with parallel.tensor 1; sequence parallel splits the sequence over tensor-parallel"
            " ranks; set parallel.tensor above 1 or parallel.sequence to false"
        )
    if config.loss.rollout_correction != "none" and config.loss.old_logprobs == "rollout":
        raise ConfigError(
            f"loss.rollout_correction: {config.loss.rollout_correction} with loss.old_logprobs rollout; the weight is"
            " the trainer's probability over the engine's, so the trainer must compute its own: set loss.old_logprobs"
            " to recompute, or loss.rollout_correction to none"
        )
    if config.optimizer.min_lr > config.optimizer.lr:
        raise ConfigError(
            f"optimizer.min_lr: {config.optimizer.min_lr:g} is above optimizer.lr {config.optimizer.lr:g};"
            " the schedule decays from lr to min_lr"
        )


def _check_batch(config: Config) -> None:
    group_size, prompts, minibatches = (
        config.rollout.completions_per_prompt,
        config.data.prompts_per_step,
        config.loss.minibatches,
    )
    if group_size < 2:
        raise ConfigError(
            f"rollout.completions_per_prompt: {group_size} is below 2; an advantage compares a completion with"
            " others of its group; set it to 2 or more (the recipe uses 8)"
        )
    if prompts % minibatches:
        below, above = prompts - prompts % minibatches, (prompts // minibatches + 1) * minibatches
        raise ConfigError(
            f"data.prompts_per_step: {prompts} does not divide by loss.minibatches {minibatches}"
            f" ({prompts} / {minibatches} = {prompts / minibatches:.2f} prompts a mini-batch); a mini-batch holds whole"
            f" groups; use {f'{below} or ' if below else ''}{above} prompts, or another number of mini-batches"
        )


def _check_curriculum(config: Config) -> None:
    phases = config.data.curriculum
    if not phases:
        raise ConfigError("data.curriculum: is empty; give at least one phase, e.g. [{mix: {reasoning: 1}}]")
    if phases[-1].until is not None:
        raise ConfigError(
            f"data.curriculum: the last phase ends at step {phases[-1].until};"
            " leave out `until` so that it covers the rest"
        )
    previous = 0
    for index, phase in enumerate(phases):
        if sum(phase.mix.values()) <= 0:
            raise ConfigError(
                f"data.curriculum.{index}.mix: weights sum to 0; give at least one task a positive weight"
            )
        if index < len(phases) - 1 and (phase.until is None or phase.until <= previous):
            raise ConfigError(
                f"data.curriculum.{index}.until: {phase.until} is not above {previous}; phases follow each other,"
                " so each `until` must be larger than the one before"
            )
        previous = phase.until or previous


def _check_overlap(config: Config) -> None:
    if config.rollout.engine == "embedded":
        raise ConfigError(
            "rollout.overlap: 1 with rollout.engine embedded, which generates in the process that trains; use servers,"
            " or set it to 0"
        )
    if config.rollout.resample_rounds:
        raise ConfigError(
            f"rollout.overlap: 1 with rollout.resample_rounds {config.rollout.resample_rounds}; what a batch ahead"
            " lacks is known only when its own step begins; set one of them to 0"
        )
    if config.loss.old_logprobs == "recompute" and config.loss.rollout_correction == "none":
        raise ConfigError(
            "rollout.overlap: 1 with loss.old_logprobs recompute and loss.rollout_correction none; a batch is one"
            " update older than the policy that learns from it, and nothing would correct for it; set"
            " rollout_correction to token_tis or sequence_mis, or old_logprobs to rollout"
        )


MEMORY_FLAGS = {"sglang": "enable-memory-saver", "vllm": "enable-sleep-mode"}
"""Without them a server answers that it released its memory, and keeps it."""


def _check_release(config: Config) -> None:
    engine, field = config.rollout.engine, "rollout.release_memory: true"
    if engine == "embedded":
        raise ConfigError(
            f"{field} with rollout.engine embedded, which has no servers that could release any; use servers, or set it"
            " to false"
        )
    if config.rollout.overlap:
        raise ConfigError(
            f"{field} with rollout.overlap 1, which generates while the policy trains; set one of them to false or 0"
        )
    flags = (config.rollout.sglang if engine == "sglang" else config.rollout.vllm).flags
    if flags.get("device") == "cpu":
        raise ConfigError(
            f"{field} with rollout.{engine}.flags device cpu; a server on a CPU releases nothing; set it to false, or"
            " use a GPU"
        )
    if flags.get(MEMORY_FLAGS[engine], True) is not True:
        raise ConfigError(
            f"{field} with rollout.{engine}.flags {MEMORY_FLAGS[engine]} {flags[MEMORY_FLAGS[engine]]}; without the"
            " flag a server keeps its memory and answers with success; leave it out (it is added), or set"
            " release_memory to false"
        )


ALWAYS = "every server that a run starts"
COMMON_FLAGS = {
    "model-path": "model.path",
    "model": "model.path",
    "host": "rollout.{engine}.urls",
    "port": "rollout.{engine}.port",
    "dtype": "rollout.{engine}.dtype",
    "tensor-parallel-size": "rollout.{engine}.tensor",
    "skip-tokenizer-init": ALWAYS,
}
OWN_FLAGS = {
    "sglang": COMMON_FLAGS
    | {"tp-size": "rollout.sglang.tensor", "base-gpu-id": "rollout.sglang.first_gpu", "skip-server-warmup": ALWAYS},
    "vllm": COMMON_FLAGS | {"logprobs-mode": ALWAYS, "worker-extension-cls": ALWAYS, "tokens-only": ALWAYS},
}
"""Flags of a server that other values of the config set."""


def _check_servers(config: Config, servers: ServersConfig) -> None:
    engine = config.rollout.engine
    own_flags = OWN_FLAGS[engine]
    for name in servers.flags:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise ConfigError(
                f"rollout.{engine}.flags: {name!r} is no name of a flag; write it in small letters with single dashes"
                " between words, without leading ones, e.g. mem-fraction-static"
            )
        if name in own_flags:
            source = own_flags[name].format(engine=engine)
            raise ConfigError(f"rollout.{engine}.flags: {name} is set by {source}; leave it out here")
    for url in servers.urls:
        if not re.fullmatch(r"https?://[^/?#\s]+/?", url):
            raise ConfigError(f"rollout.{engine}.urls: {url!r} is no address of a server; write http://HOST:PORT")
    if len(set(servers.urls)) < len(servers.urls):
        raise ConfigError(f"rollout.{engine}.urls: names a server twice; name each once")
    remote = [url for url in servers.urls if not re.match(r"https?://(127\.|localhost[:/]|localhost$)", url)]
    if remote and config.weight_sync.transport == "tensor":
        raise ConfigError(
            f"weight_sync.transport: tensor shares memory with servers of this machine, {remote[0]} is another; use"
            " broadcast or disk"
        )
    if remote and config.weight_sync.transport == "broadcast" and config.weight_sync.address.startswith("127."):
        raise ConfigError(
            f"weight_sync.address: {config.weight_sync.address} cannot be reached from {remote[0]}; give this machine's"
            " own address"
        )


def _check_referee(config: Config) -> None:
    low, high = config.referee.score_range
    if low >= high:
        raise ConfigError(f"referee.score_range: [{low:g}, {high:g}] is empty; give [lowest, highest]")
    template = config.referee.template
    for field, text, names in (
        ("prompt", template.prompt, ("{question}", "{responses}")),
        ("response", template.response, ("{response}", "{index}")),
    ):
        for name in names:
            if text.count(name) < 1:
                raise ConfigError(f"referee.template.{field}: has no {name}; the template needs {' and '.join(names)}")
