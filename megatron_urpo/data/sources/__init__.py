"""Readers of public datasets, by the names that a pack config gives them."""

import difflib

from megatron_urpo.data.errors import DataError
from megatron_urpo.data.sources import (
    alpaca_eval,
    competition_math,
    conversations,
    generic,
    gsm8k,
    helpsteer3,
    humaneval,
    nectar,
    offsetbias,
    skywork_or1,
    skywork_preference,
    ultrafeedback,
)
from megatron_urpo.data.sources.base import Reader, RowError

__all__ = ["READERS", "Reader", "RowError", "reader_of"]

READERS: dict[str, Reader] = {
    "skywork_or1": skywork_or1.READER,
    "gsm8k": gsm8k.READER,
    "math": competition_math.READER,
    "humaneval": humaneval.READER,
    "helpsteer3": helpsteer3.READER,
    "ultrafeedback": ultrafeedback.READER,
    "skywork_preference": skywork_preference.READER,
    "nectar": nectar.READER,
    "offsetbias": offsetbias.OFFSETBIAS,
    "evalbiasbench": offsetbias.EVALBIASBENCH,
    "alpaca_eval_annotations": alpaca_eval.ANNOTATIONS,
    "alpaca_eval_instructions": alpaca_eval.INSTRUCTIONS,
    "prompt_collection": conversations.PROMPT_COLLECTION,
    "tulu3": conversations.MESSAGES,
    "messages": conversations.MESSAGES,
    "prompt_answer": generic.ANSWER,
    "prompt_chosen_rejected": generic.PAIR,
    "prompt_responses": generic.RANKED,
}


def reader_of(dataset: str, field: str) -> Reader:
    """Raises DataError for a name without a reader; `field` is where the config gives it."""
    if dataset in READERS:
        return READERS[dataset]
    near = difflib.get_close_matches(dataset, READERS, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(READERS)}"
    raise DataError(f"{field}: {dataset!r} has no reader; {hint}")
