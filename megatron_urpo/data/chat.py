"""Text to tokens and back through a Hugging Face tokenizer folder; the chat format is the tokenizer's own template.

Only local files are read: a run must not depend on a network, and compute nodes often have none.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from megatron_urpo.data.errors import DataError
from megatron_urpo.types import Message


class HuggingFaceTokenizer:
    """`protocols.ChatTokenizer` over a transformers tokenizer that has a chat template and an end token."""

    def __init__(self, tokenizer: Any, stop_token_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._stop_token_ids = tuple(stop_token_ids)
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._special_tokens = tuple(dict.fromkeys((*tokenizer.all_special_tokens, *added)))
        self._vocab_size = len(tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; a model's embedding may be larger, never smaller."""
        return self._vocab_size

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's end token, then those that generation_config.json adds."""
        return self._stop_token_ids

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Texts that encode to control tokens."""
        return self._special_tokens

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation and the header of the assistant's next turn. Raises as `chat_text`."""
        # The template writes every control token itself, a leading one included.
        return self.encode(self.chat_text(messages))

    def chat_text(self, messages: Sequence[Message]) -> str:
        """What `encode_chat` encodes, control tokens written out.

        Raises:
            DataError: the template refuses the conversation, e.g. a system message where the model knows none.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"chat template: refuses a conversation with roles [{roles}]: {error};"
                " change the prompts' messages or the tokenizer's template"
            ) from None
        return text

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, many at once."""
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            return [list(self.encode(text)) for text in texts]
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def identity(self) -> dict[str, str]:
        """`hash`: of how text becomes tokens; `chat_template`: of how conversations become text.

        Of what the tokenizer does, not of its files: their layout changes whenever a library saves them again.
        """
        if isinstance(self._tokenizer, PreTrainedTokenizerFast):
            tree = json.loads(self._tokenizer.backend_tokenizer.to_str())
            parts = {name: tree.get(name) for name in tree if name not in ("padding", "truncation", "version")}
        else:
            parts = {"class": type(self._tokenizer).__name__, "vocabulary": self._tokenizer.get_vocab()}
        texts = {"hash": json.dumps(parts, sort_keys=True), "chat_template": str(self._tokenizer.chat_template)}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text: no template, no special tokens added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens, spaces as they were."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def load_tokenizer(path: Path, field: str = "model.tokenizer") -> HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face folder; `field` of the config names it.

    Raises:
        DataError: no folder, no readable tokenizer in it, no chat template, no end token.
    """
    if not path.is_dir():
        raise DataError(f"{field}: {path} is no folder; give a Hugging Face folder with tokenizer files")
    # For some model types AutoTokenizer (transformers 5.23) ignores the class that the folder names and rebuilds the
    # tokenizer around its vocabulary, which silently changes how text splits; tokenizer.json is taken as it is.
    kind = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else _auto_tokenizer()
    try:
        tokenizer = kind.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{field}: {path} has no tokenizer that transformers can read: {reason}") from None
    if tokenizer.chat_template is None:
        raise DataError(
            f"{field}: {path} has no chat template; use an instruction-tuned model's tokenizer or add a"
            " chat_template.jinja to the folder"
        )
    stop = _generation_config_stops(path, field)
    if tokenizer.eos_token_id is not None:
        stop = [int(tokenizer.eos_token_id), *stop]
    if not stop:
        raise DataError(
            f"{field}: {path} names no end token, so no completion would ever stop; set eos_token in"
            " tokenizer_config.json or eos_token_id in generation_config.json"
        )
    return HuggingFaceTokenizer(tokenizer, tuple(dict.fromkeys(stop)))


def _auto_tokenizer() -> Any:
    """Imported where it is needed: it brings torch along, which takes longer to load than many a tokenizer to use."""
    from transformers import AutoTokenizer

    return AutoTokenizer


def _generation_config_stops(path: Path, field: str) -> list[int]:
    file = path / "generation_config.json"
    if not file.is_file():
        return []
    try:
        value = json.loads(file.read_text()).get("eos_token_id")
    except (ValueError, AttributeError):
        raise DataError(f"{field}: {file} is not a JSON object; repair or remove it") from None
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) for item in values):
        raise DataError(f"{field}: eos_token_id in {file} is {value!r}; it is a number or a list of numbers")
    return values
