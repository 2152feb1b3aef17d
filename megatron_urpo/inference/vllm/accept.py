"""Whether a server can serve this run: our extension, its version, precision, context, vocabulary."""

import asyncio

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.release import check_release
from megatron_urpo.inference.vllm.client import VLLMInfo, read_info
from megatron_urpo.inference.vllm.launch import EXTENSION, EXTENSION_CLASS
from megatron_urpo.inference.vllm.update import DESCRIBE, RPC
from megatron_urpo.protocols import ServerGone, ServerRefused

OLDEST_VERSION = (0, 32)
LOOK_SECONDS = 30.0
NEEDS = f"VLLM_SERVER_DEV_MODE=1 PYTHONPATH={EXTENSION} and --tokens-only --worker-extension-cls {EXTENSION_CLASS}"


def check_urls(config: Config, vocab_size: int) -> None:
    """Asks every server that the run is to attach to. Raises ConfigError for the first that cannot serve it."""
    for url in config.rollout.vllm.urls:
        info = asyncio.run(_look(url))
        check_info(config, url, info)
        if info.vocab_size != vocab_size:
            raise ConfigError(
                f"rollout.vllm.urls: {url} serves {info.model} with a vocabulary of {info.vocab_size}, model.path has"
                f" {vocab_size}; start the server with the model of this run"
            )


def check_info(config: Config, url: str, info: VLLMInfo) -> None:
    """Raises ConfigError where the server is too old, or was started with other values than the config's."""
    servers, field = config.rollout.vllm, "rollout.vllm"
    if tuple(int(part) for part in info.version.split(".")[:2]) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigError(f"{field}: {url} is vLLM {info.version}, {oldest} is the oldest that was tried; update it")
    for name, flag, found, wanted in (
        ("tensor", "--tensor-parallel-size", info.tensor, servers.tensor),
        ("dtype", "--dtype", info.dtype, servers.dtype),
    ):
        if found != wanted:
            raise ConfigError(
                f"{field}.{name}: {wanted}, but {url} runs with {found}; set it to {found} or start the server with"
                f" {flag} {wanted}"
            )
    if info.quantization is not None:
        raise ConfigError(
            f"{field}: {url} quantizes its weights ({info.quantization}), which an update replaces in place; start it"
            " without --quantization, with a model that is not quantized"
        )
    if info.logprobs_mode != "processed_logprobs":
        raise ConfigError(
            f"{field}: {url} tells {info.logprobs_mode}, not the log-probabilities that it sampled at; start it with"
            " --logprobs-mode processed_logprobs"
        )
    if config.rollout.release_memory:
        check_release("vllm", url, info.device, info.releases_memory)
    for section, limits in (("rollout", config.rollout), ("referee", config.referee)):
        prompt, new = limits.max_prompt_tokens, limits.max_new_tokens
        if prompt + new > info.context:
            raise ConfigError(
                f"{section}.max_prompt_tokens: {prompt} + {section}.max_new_tokens {new} = {prompt + new}, but {url}"
                f" has a context of {info.context}, and cuts longer answers without a word; lower one of them"
            )


async def _look(url: str) -> VLLMInfo:
    server = HttpServer(url)
    try:
        return read_info(await server.post(RPC, DESCRIBE, LOOK_SECONDS))
    except ServerGone as error:
        reason = f"does not answer ({error})"
    except (ServerRefused, LookupError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = f"is not a vLLM server whose weights can be replaced ({found})"
    finally:
        await server.close()
    raise ConfigError(f"rollout.vllm.urls: {url} {reason}; start one there with {NEEDS}, or correct the address")
