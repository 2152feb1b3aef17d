"""Where the layers of hands meet: an engine, its servers, a chat tokenizer and a policy, each as its users see it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, Protocol, TypeVar

from megatron_urpo.types import Completion, GenerationRequest, Message

if TYPE_CHECKING:
    import torch


P = ParamSpec("P")
T = TypeVar("T")

MemoryTag = Literal["kv_cache", "weights"]
MEMORY_TAGS: tuple[MemoryTag, ...] = ("kv_cache", "weights")
"""What a server can release of its GPU memory, by the names that SGLang and vLLM share."""
NO_WEIGHTS = "released"
"""The version of a server whose weights were released and never sent again; read as -1."""


class EngineError(RuntimeError):
    """Generation cannot go on, and the run with it; the message names the engine and says why."""


class GenerationFailed(RuntimeError):
    """One request got no answer, after every retry that is safe. The engine serves others."""


class Abandoned(RuntimeError):
    """The run was told to stop while completions were written; what there is of them is not used."""


class WeightsLost(RuntimeError):
    """No server of the engine has the policy's weights any more, and at least one waits for them."""


class PushAgain(RuntimeError):
    """A server died in the middle of a weight update; the others need the whole of it once more."""


class ServerGone(RuntimeError):
    """A server did not answer: it refused the connection, broke it, or (`late`) let the deadline pass."""

    def __init__(self, message: str, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class ServerRefused(RuntimeError):
    """A server answered that it did not do what it was asked to; `status` is the HTTP status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class RankZeroError(RuntimeError):
    """Rank 0 failed in a call whose result the other ranks were waiting for."""


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class RankLost(RuntimeError):
    """A rank died, stopped answering or raised an error, so the others cannot go on; started again the run does."""

    exit_code = 75

    def __init__(self, message: str, tell: bool = True) -> None:
        """`tell`: whether it falls to this rank to say it."""
        super().__init__(message)
        self.tell = tell


class Generator(Protocol):
    """Samples completions from one version of the policy."""

    @property
    def version(self) -> int:
        """Version of the weights that the next token would be sampled from; -1 before the first update."""

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """`request.num_completions` completions, in the order of their index.

        Raises GenerationFailed where this request alone has to be given up, WeightsLost where weights have to be sent
        again before any request can be served, EngineError where none ever will be.
        """


class WeightReceiver(Protocol):
    """Takes a whole set of Hugging Face-named weights."""

    def update_weights(self, tensors: Iterable[tuple[str, "torch.Tensor"]], version: int) -> None:
        """All or nothing: on an error the old weights and the old version stay."""


class Engine(Generator, Protocol):
    """What `train` holds: it generates, and says how it fares."""

    def describe(self) -> str:
        """Program, version and precision, in a few words."""

    def take_counts(self) -> dict[str, float]:
        """Metrics `engine/...` of what happened since the last call."""

    def close(self) -> None:
        """Give back processes, sockets and memory."""


class UpdatableServer(Protocol):
    """A server whose weights are replaced over HTTP, by a thread of its own: every call blocks until it has answered.

    All raise ServerGone and ServerRefused. Between `begin_update` and `end_update` it generates nothing.
    """

    @property
    def name(self) -> str:
        """Its address."""

    @property
    def tensor(self) -> int:
        """Its tensor-parallel size."""

    def begin_update(self) -> None:
        """Stops generation, also where an earlier update broke off half way."""

    def load_folder(self, folder: Path) -> None:
        """Reads every weight from the safetensors files of `folder`, which it can see under the same path."""

    def load_tensors(self, pickled: Sequence[bytes]) -> None:
        """Takes, for each of its ranks, a pickled list of (Hugging Face name, tensor in memory that both share)."""

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        """Its ranks join a process group as `rank`, `rank` + 1, ...; returns when all members have joined."""

    def leave_group(self, group: str) -> None: ...

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        """Takes part in one broadcast from rank 0 of the group: the tensors' bytes, one after the other."""

    def end_update(self, version: int) -> None:
        """Forgets what was cached for the old weights, stamps `version`, and generates again."""

    def release(self) -> None:
        """Stops generation and gives back the GPU memory of KV cache and weights, whose content is lost."""

    def resume(self, tag: MemoryTag) -> None:
        """Takes that memory again; nothing where it is not released. What is in it has to be sent or computed anew."""

    def started_anew(self) -> None:
        """It is another process now, which has released nothing."""

    def give_back(self) -> None:
        """Takes everything again and generates, by weights that nobody sent: for the next who attaches to it."""


class ServerPool(Protocol):
    """The servers of an engine as weight updates see them."""

    def updatable(self) -> Sequence[UpdatableServer]:
        """Those that answer. Raises EngineError where none does and none is being started."""

    def set_aside(self) -> Sequence[UpdatableServer]:
        """Those that answer, perhaps none; they are about to release memory and serve nothing before an update."""

    def updated(self, servers: Sequence[UpdatableServer], version: int) -> None:
        """From now on these, and no others, serve `version`."""

    def lost(self, server: UpdatableServer, error: Exception) -> None:
        """`server` failed in an update: it serves nothing before it has come back and got weights."""


class Ranks(Protocol):
    """What makes processes that run the same program agree."""

    @property
    def rank(self) -> int: ...

    def from_rank0(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function` runs on rank 0; every rank gets its result, or an exception."""


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
