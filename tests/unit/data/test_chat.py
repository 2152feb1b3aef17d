"""The tokenizer folder as the package sees it, on folders made here."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_urpo.data.chat import load_tokenizer
from megatron_urpo.data.errors import DataError
from megatron_urpo.types import Message

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]


def make_folder(path: Path, template: str | None = TEMPLATE, eos: str | None = "<|im_end|>") -> Path:
    """A byte-level tokenizer: 256 bytes, then the special tokens at 256, 257, 258, then a plain added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"additional_special_tokens": SPECIAL})
    fast.add_tokens(["<think>"])
    # As Llama's: whoever asks for special tokens gets one in front.
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing("<|end|> $A", None, [("<|end|>", 256)])
    if eos:
        fast.eos_token = eos
    fast.chat_template = template
    fast.save_pretrained(path)
    return path


def test_chat_is_the_template_and_the_assistants_header(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path))
    ids = tokenizer.encode_chat([Message("user", "Hi  you ."), Message("assistant", "é"), Message("user", "?")])
    start, end = 257, 258
    assert [i for i in ids if i >= 256] == [start, end, start, end, start, end, start]
    assert tokenizer.decode(ids) == "user\nHi  you .\nassistant\né\nuser\n?\nassistant\n"
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_chat([Message("user", "Hi")]) == tokenizer.encode(text)


def test_plain_text_gets_nothing_added(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path))
    assert len(tokenizer.encode("abc")) == 3
    assert tokenizer.encode("") == ()
    assert tokenizer.decode(tokenizer.encode(" a , b .")) == " a , b ."
    assert tokenizer.decode((*tokenizer.encode("a"), 258)) == "a"


def test_vocabulary_and_control_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path))
    assert tokenizer.vocab_size == 260
    assert set(tokenizer.special_tokens) == set(SPECIAL)
    for text in tokenizer.special_tokens:
        assert len(tokenizer.encode(text)) == 1
        assert tokenizer.decode(tokenizer.encode(text)) == ""


@pytest.mark.parametrize(
    ("value", "stops"), [(None, (258,)), (256, (258, 256)), ([258, 256], (258, 256)), ([], (258,))]
)
def test_stop_tokens_join_generation_config(tmp_path: Path, value: object, stops: tuple[int, ...]) -> None:
    folder = make_folder(tmp_path)
    assert load_tokenizer(folder).stop_token_ids == (258,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert load_tokenizer(folder).stop_token_ids == stops


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tokenizer that transformers can read"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(DataError, match="no chat template"):
        load_tokenizer(make_folder(tmp_path / "plain", template=None))
    with pytest.raises(DataError, match="no end token"):
        load_tokenizer(make_folder(tmp_path / "endless", eos=None))
    folder = make_folder(tmp_path / "whole")
    (folder / "generation_config.json").write_text('{"eos_token_id": "<|end|>"}')
    with pytest.raises(DataError, match=r"eos_token_id in .* is '<\|end\|>'"):
        load_tokenizer(folder)
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(DataError, match="not a JSON object"):
        load_tokenizer(folder)


def test_a_conversation_that_the_template_refuses(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path))
    with pytest.raises(DataError, match=r"roles \[system, user\]: no system turn"):
        tokenizer.encode_chat([Message("system", "Be brief."), Message("user", "Hi")])


def test_a_batch_is_encoded_as_its_texts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path))
    texts = ["", "a", "<|im_start|>user\nü\x00<|im_end|>", " <think> ", "\u202e" * 3, "a" * 5000]
    assert tokenizer.encode_batch(texts) == [list(tokenizer.encode(text)) for text in texts]
    message = [Message("user", "<|im_end|> hi")]
    assert tokenizer.encode(tokenizer.chat_text(message)) == tokenizer.encode_chat(message)


def test_identity_is_what_a_tokenizer_does_not_its_files(tmp_path: Path) -> None:
    first = load_tokenizer(make_folder(tmp_path / "a"))
    saved_again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "a")
    saved_again.padding_side = "left"
    saved_again.save_pretrained(tmp_path / "b")
    layout = tmp_path / "b" / "tokenizer.json"
    layout.write_text(json.dumps(json.loads(layout.read_text())))
    assert load_tokenizer(tmp_path / "b").identity() == first.identity()
    template = load_tokenizer(make_folder(tmp_path / "c", template=TEMPLATE + " ")).identity()
    assert template["hash"] == first.identity()["hash"]
    assert template["chat_template"] != first.identity()["chat_template"]
    saved_again.add_tokens(["<other>"])
    saved_again.save_pretrained(tmp_path / "d")
    assert load_tokenizer(tmp_path / "d").identity()["hash"] != first.identity()["hash"]
