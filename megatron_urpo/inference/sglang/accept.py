"""Whether a server can serve this run: a version that is spoken here, its precision, its context, its vocabulary."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from megatron_urpo.config import Config, ConfigError
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.inference.release import check_release
from megatron_urpo.inference.sglang.client import SGLangInfo, read_info
from megatron_urpo.protocols import ServerGone, ServerRefused

OLDEST_VERSION = (0, 5, 19)
LOOK_SECONDS = 30.0


def check_urls(config: Config, vocab_size: int) -> None:
    """Asks every server that the run is to attach to. Raises ConfigError for the first that cannot serve it."""
    for url in config.rollout.sglang.urls:
        info, model_path = asyncio.run(_look(url))
        check_info(config, url, info)
        _check_vocabulary(url, model_path, vocab_size)


def check_info(config: Config, url: str, info: SGLangInfo) -> None:
    """Raises ConfigError where the server is too old, or was started with other values than the config's."""
    servers, field = config.rollout.sglang, "rollout.sglang"
    if _numbers(info.version) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigError(
            f"{field}: {url} is SGLang {info.version}, {oldest} is the oldest that tells the version of every token;"
            " update it"
        )
    if info.tensor != servers.tensor:
        raise ConfigError(
            f"{field}.tensor: {servers.tensor}, but {url} runs on {info.tensor} tensor-parallel ranks; set it to"
            f" {info.tensor} or start the server with --tp-size {servers.tensor}"
        )
    if info.dtype not in ("auto", servers.dtype):
        raise ConfigError(
            f"{field}.dtype: {servers.dtype}, but {url} computes in {info.dtype}; set it to {info.dtype} or start the"
            f" server with --dtype {servers.dtype}"
        )
    if config.rollout.release_memory:
        check_release("sglang", url, info.device, info.releases_memory)
    for section, limits in (("rollout", config.rollout), ("referee", config.referee)):
        prompt, new = limits.max_prompt_tokens, limits.max_new_tokens
        if prompt > info.max_prompt_tokens or prompt + new > info.max_tokens:
            raise ConfigError(
                f"{section}.max_prompt_tokens: {prompt} + {section}.max_new_tokens {new} = {prompt + new}, but {url}"
                f" takes prompts of {info.max_prompt_tokens} tokens, and {info.max_tokens} with their answers (it keeps"
                " some positions of the context for itself, and cuts longer answers without a word); lower one of them"
            )


async def _look(url: str) -> tuple[SGLangInfo, str]:
    server = HttpServer(url)
    try:
        info = read_info(await server.get("/server_info", LOOK_SECONDS))
        model: Any = await server.get("/model_info", LOOK_SECONDS)
        return info, str(model["model_path"])
    except ServerGone as error:
        reason = f"does not answer ({error})"
    except (ServerRefused, LookupError, TypeError, ValueError) as error:
        reason = f"is not an SGLang server ({type(error).__name__}: {' '.join(str(error).split())})"
    finally:
        await server.close()
    raise ConfigError(f"rollout.sglang.urls: {url} {reason}; start one there, or correct the address")


def _check_vocabulary(url: str, model_path: str, vocab_size: int) -> None:
    """As far as it can be known: a server does not tell its vocabulary, but often has its model on a shared disk."""
    path = Path(model_path) / "config.json"
    if not path.is_file():
        return
    served = json.loads(path.read_text()).get("vocab_size")
    if served != vocab_size:
        raise ConfigError(
            f"rollout.sglang.urls: {url} serves {model_path} with a vocabulary of {served}, model.path has"
            f" {vocab_size}; start the server with the model of this run"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """`0.5.21.post1` -> (0, 5, 21)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
