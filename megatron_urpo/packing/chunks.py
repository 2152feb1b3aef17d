"""What a process of the pool does with a chunk of a file: prompts, their lengths, and the keys that compare them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray

from megatron_urpo.config.pack import PackConfig
from megatron_urpo.config.reward import RefereeConfig
from megatron_urpo.data.candidates import subsample
from megatron_urpo.data.chat import HuggingFaceTokenizer, load_tokenizer
from megatron_urpo.data.decontaminate import EvaluationQuestions, question_of
from megatron_urpo.data.duplicates import PERMUTATIONS, band_hashes, num_bands, shingles, signatures
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.files import Chunk, to_stream
from megatron_urpo.data.ngrams import Hashes, HashSet, WordHasher, hash_bytes
from megatron_urpo.data.rows import to_row
from megatron_urpo.data.sources import reader_of
from megatron_urpo.data.store_schema import PACKED_SCHEMA
from megatron_urpo.packing.rows import Left, RowReader, raw_rows
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.types import Message, PreferencePrompt, Prompt, ReasoningPrompt


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """Prompts of one chunk as a record batch of PACKED_SCHEMA in Arrow's stream format, and what is known of each.

    `order` decides the place in the store; `exact`, `bands` [bands, prompts] and `signature` find duplicates.
    """

    batch: bytes
    numbers: NDArray[np.int64]
    order: Hashes
    exact: Hashes
    bands: Hashes
    signature: NDArray[np.uint32]
    left: tuple[Left, ...]
    num_read: int
    file: int
    position: int


class ChunkPacker:
    """Everything that is the same for all chunks; one in each process."""

    def __init__(self, config: PackConfig, evaluation: Path | None) -> None:
        """`evaluation`: file of the evaluation questions, None where there are none."""
        self._config = config
        self._tokenizer = load_tokenizer(config.tokenizer, "tokenizer")
        self._scoring = ScoringPrompts(RefereeConfig(template=config.template), self._tokenizer)
        self._questions = EvaluationQuestions.load(evaluation) if evaluation else None
        self._hasher = WordHasher()
        self._bands = num_bands(config.duplicates.near) if config.duplicates.near else 0
        self._boilerplate = self._template_shingles(config.max_candidates)
        self._readers = [self._row_reader(index) for index in range(len(config.sources))]

    def __call__(self, source: int, file: int, name: str, chunk: Chunk) -> PackedChunk:
        """`name`: of the chunk's file, as ids have it. `file` comes back with the result, to say where it stands."""
        left: list[Left] = []
        numbers: list[int] = []
        prompts: list[Prompt] = []
        texts: list[str] = []
        for number, row in raw_rows(chunk):
            prompt_id = f"{self._config.sources[source].name}/{name}/{number}"
            prompt = self._readers[source](number, row, prompt_id)
            if isinstance(prompt, PreferencePrompt):
                prompt = self._ranking(number, prompt)
            text = prompt if isinstance(prompt, Left) else self._text(number, prompt)
            if isinstance(text, Left):
                left.append(text)
            else:
                assert not isinstance(prompt, Left)
                prompts.append(prompt)
                numbers.append(number)
                texts.append(text)
        ids = self._tokenizer.encode_batch(texts)
        lengths = [len(own) for own in ids]
        causes = self._causes(numbers, prompts, lengths)
        left += [cause for cause in causes if cause is not None]
        kept = [i for i, cause in enumerate(causes) if cause is None]
        chosen = [prompts[i] for i in kept]
        exact, bands, signature = self._keys(chosen, [ids[i] for i in kept])
        return PackedChunk(
            batch=self._packed(chosen, [lengths[i] for i in kept]),
            numbers=np.array([numbers[i] for i in kept], np.int64),
            order=np.array([hash_bytes(f"{self._config.seed}/{prompt.id}".encode()) for prompt in chosen], np.uint64),
            exact=exact,
            bands=bands,
            signature=signature,
            left=tuple(left),
            num_read=len(chunk.numbers),
            file=file,
            position=chunk.position,
        )

    def _template_shingles(self, max_candidates: int) -> HashSet:
        """Of scoring prompts without text, which all of them share and which say nothing about likeness."""
        message = (Message("user", ""),)
        empty = PreferencePrompt("", message, ("",) * max_candidates, (0.0,) * max_candidates)
        return HashSet(shingles(self._tokenizer.encode_batch([model_text(empty, self._tokenizer, self._scoring)]))[0])

    def _row_reader(self, index: int) -> RowReader:
        source = self._config.sources[index]
        reader = reader_of(source.dataset, f"sources.{index}.dataset")
        return RowReader(source, reader, source.task or reader.task, self._config.max_row_mib << 20)

    def _ranking(self, number: int, prompt: PreferencePrompt) -> PreferencePrompt | Left:
        if len(set(prompt.gold)) == 1 and not self._config.constant_rankings:
            return Left(number, "constant_ranking", "all responses are tied")
        if len(set(prompt.responses)) == 1:
            return Left(number, "rejected", "all responses are the same text")
        return subsample(prompt, self._config.max_candidates, str(self._config.seed))

    def _text(self, number: int, prompt: Prompt) -> str | Left:
        try:
            return model_text(prompt, self._tokenizer, self._scoring)
        except DataError as error:
            return Left(number, "rejected", str(error))

    def _causes(self, numbers: Sequence[int], prompts: Sequence[Prompt], lengths: Sequence[int]) -> list[Left | None]:
        """Why a prompt that was read well is left out: too long, or an evaluation question."""
        questions = [question_of(prompt.messages) for prompt in prompts]
        found = self._questions.matches(questions, self._hasher) if self._questions else [None] * len(prompts)
        causes: list[Left | None] = []
        for number, prompt, length, match in zip(numbers, prompts, lengths, found, strict=True):
            limits = self._config.max_prompt_tokens
            limit = limits.referee if isinstance(prompt, PreferencePrompt) else limits.player
            if length > limit:
                causes.append(Left(number, "too_long", f"{length} tokens, at most {limit}"))
            elif match:
                causes.append(Left(number, "contaminated", f"{match.overlap:.2f} of {match.place}"))
            else:
                causes.append(None)
        return causes

    def _packed(self, prompts: Sequence[Prompt], lengths: Sequence[int]) -> bytes:
        rows = [to_row(prompt) | {"num_tokens": length} for prompt, length in zip(prompts, lengths, strict=True)]
        return to_stream(pyarrow.RecordBatch.from_pylist(rows, schema=PACKED_SCHEMA))

    def _keys(
        self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]
    ) -> tuple[Hashes, Hashes, NDArray[np.uint32]]:
        exact = np.array(
            [hash_bytes(f"{prompt.task}\0{compared_text(prompt)}".encode()) for prompt in prompts], np.uint64
        )
        if not self._bands or not prompts:
            return exact, np.zeros((self._bands, len(prompts)), np.uint64), np.zeros((0, PERMUTATIONS), np.uint32)
        salts = np.array([hash_bytes(f"{prompt.task}\0{_truth(prompt)}".encode()) for prompt in prompts], np.uint64)
        signature = signatures(ids, self._boilerplate)
        return exact, band_hashes(signature, salts, self._bands), signature


def model_text(prompt: Prompt, tokenizer: HuggingFaceTokenizer, scoring: ScoringPrompts) -> str:
    """What the model is given, control tokens written out: the question, or the scoring prompt over the candidates."""
    if isinstance(prompt, PreferencePrompt):
        return tokenizer.chat_text([Message("user", scoring.whole(prompt.messages, prompt.responses))])
    return tokenizer.chat_text(prompt.messages)


def compared_text(prompt: Prompt) -> str:
    """What makes two prompts of a task the same: the conversation, and the candidates in whatever order.

    Letter case and white space aside.
    """
    responses = sorted(prompt.responses) if isinstance(prompt, PreferencePrompt) else ()
    text = "\n".join([*(f"{message.role}: {message.content}" for message in prompt.messages), *responses])
    return " ".join(text.casefold().split())


def _truth(prompt: Prompt) -> str:
    return repr((prompt.answers, prompt.tests)) if isinstance(prompt, ReasoningPrompt) else ""


_packer: ChunkPacker | None = None


def start_process(config: PackConfig, evaluation: Path | None) -> None:
    """Makes this process one of the pool: its libraries use one core."""
    global _packer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    pyarrow.set_cpu_count(1)
    _packer = ChunkPacker(config, evaluation)


def pack_chunk(source: int, file: int, name: str, chunk: Chunk) -> PackedChunk:
    assert _packer is not None
    return _packer(source, file, name, chunk)
