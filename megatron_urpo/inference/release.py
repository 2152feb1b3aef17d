"""Whether a server really gives GPU memory back when it is told to.

It cannot be seen from its answer: SGLang without --enable-memory-saver and vLLM on a CPU answer with success and keep
everything. So a run asks how the server was started, and refuses one that would keep its memory.
"""

from megatron_urpo.config import ConfigError
from megatron_urpo.config.checks import MEMORY_FLAGS


def check_release(engine: str, url: str, device: str, releases_memory: bool) -> None:
    """Raises ConfigError for a server on `device` that was started without the flag, or on a CPU."""
    field = "rollout.release_memory: true"
    if device == "cpu":
        raise ConfigError(
            f"{field}, but {url} runs on a CPU and releases nothing; set it to false, or use servers on GPUs"
        )
    if not releases_memory:
        raise ConfigError(
            f"{field}, but {url} was started without --{MEMORY_FLAGS[engine]} and would keep its memory; start it with"
            " the flag, or set release_memory to false"
        )
