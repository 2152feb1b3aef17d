"""Where the layers of hands meet: an engine, a chat tokenizer and a policy, each as its users see it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from megatron_urpo.types import Completion, GenerationRequest, Message

if TYPE_CHECKING:
    import torch


class Generator(Protocol):
    """Samples completions from one version of the policy."""

    @property
    def version(self) -> int:
        """Version of the weights that the next token would be sampled from; -1 before the first update."""

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """`request.num_completions` completions, in the order of their index."""


class WeightReceiver(Protocol):
    """Takes a whole set of Hugging Face-named weights."""

    def update_weights(self, tensors: Iterable[tuple[str, "torch.Tensor"]], version: int) -> None:
        """All or nothing: on an error the old weights and the old version stay."""


class Engine(Generator, WeightReceiver, Protocol):
    """What `train` holds: it generates and takes new weights."""

    def close(self) -> None:
        """Give back processes, sockets and memory."""


class WeightSource(Protocol):
    """A policy whose weights can be streamed. Collective: every rank iterates, rank 0 receives the tensors."""

    def export(self) -> Iterator[tuple[str, "torch.Tensor"]]: ...


class ChatTokenizer(Protocol):
    """Text to tokens and back; the chat template is the tokenizer's own."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Texts that encode to control tokens; untrusted text must not contain them."""

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation and the header of the assistant's next turn."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text: no template, no special tokens added."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
