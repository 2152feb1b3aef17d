"""Supervised training on conversations: makes the model that URPO starts from."""

import json
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_urpo.config import SftConfig
from megatron_urpo.data.errors import DataError
from megatron_urpo.policy.packing import TokenSequence
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.supervised import supervised_step
from megatron_urpo.preflight.inputs import check_model
from megatron_urpo.protocols import ChatTokenizer
from megatron_urpo.types import Message


def sft(config: SftConfig) -> None:
    """Trains `config.num_steps` steps and writes the model as a Hugging Face folder to `config.output`.

    Rows are taken in the file's own order, from the start again when it ends. Raises ConfigError and DataError.
    """
    _, tokenizer = check_model(config.model, config.parallel, config.fp8)
    rows = read_conversations(config.data.train)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with joined_ranks(config.parallel, config.seed, config.launch) as parallel:
        policy = build_policy(
            config.model, config.optimizer, config.parallel, parallel, config.num_steps, 1, fp8=config.fp8
        )
        with Progress(*columns, disable=parallel.rank != 0) as progress:
            _train(config, policy, cycle(rows), tokenizer, progress)
        policy.write_model(config.output, config.model.path)


def _train(
    config: SftConfig, policy: Policy, rows: Iterator[dict[str, Any]], tokenizer: ChatTokenizer, progress: Progress
) -> None:
    bar = progress.add_task("supervised", total=config.num_steps)
    for step in range(1, config.num_steps + 1):
        sequences = [encode_conversation(row, tokenizer) for row in islice(rows, config.data.rows_per_step)]
        metrics = supervised_step(policy, sequences, config.data.max_tokens_per_micro_batch)
        text = f"loss {metrics['sft/loss']:.3f}"
        progress.update(bar, advance=1, description=f"supervised  {text}")
        if not progress.disable and not progress.console.is_terminal and step % 100 == 0:
            progress.console.print(f"step {step}/{config.num_steps}  {text}")


def read_conversations(path: Path) -> list[dict[str, Any]]:
    """Rows `{messages, weight?, prompt_weight?}` whose last message is the assistant's. Raises DataError."""
    if not path.is_file():
        raise DataError(f"data.train: {path} is no file; give JSONL of conversations")
    rows = [_read_row(line, f"{path}:{number}") for number, line in _lines(path)]
    if not rows:
        raise DataError(f"data.train: {path} holds no rows; give JSONL of conversations")
    return rows


def encode_conversation(row: dict[str, Any], tokenizer: ChatTokenizer) -> TokenSequence:
    """Tokens of a conversation; its last message is learned with `weight`, what is before it with `prompt_weight`.

    The answer ends with the first of the tokenizer's stop tokens, so that the model learns to stop.
    """
    messages = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
    prompt = tokenizer.encode_chat(messages[:-1])
    answer = (*tokenizer.encode(messages[-1].content), tokenizer.stop_token_ids[0])
    weight, prompt_weight = float(row.get("weight", 1.0)), float(row.get("prompt_weight", 0.0))
    if not prompt_weight:
        return TokenSequence((*prompt, *answer), len(prompt), {"weights": [weight] * len(answer)})
    weights = [weight * prompt_weight] * (len(prompt) - 1) + [weight] * len(answer)
    return TokenSequence((*prompt, *answer), 1, {"weights": weights})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _read_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        turns = row["messages"]
        complete = len(turns) >= 2 and turns[-1]["role"] == "assistant"
        complete = complete and all(isinstance(turn["content"], str) and turn["role"] for turn in turns)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: is not a row {{messages: [{{role, content}}, …]}}: {error!r}") from None
    if not complete:
        raise DataError(f"{place}: messages: needs a question and ends with a message of role `assistant`")
    assert isinstance(row, dict)
    return row
