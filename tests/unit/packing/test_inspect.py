"""`inspect`: tables, and prompts token for token as the model gets them; nothing in a store acts on the terminal."""

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from megatron_urpo.cli import main
from megatron_urpo.config.reward import RefereeConfig
from megatron_urpo.data.chat import load_tokenizer
from megatron_urpo.data.manifest import read_manifest
from megatron_urpo.packing.inspect import draw_prompts, inspect_store
from megatron_urpo.packing.visible import visible
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.types import PreferencePrompt
from tests.support import published as p
from tests.support.packing import packed, write_tokenizer
from tests.support.published import write_jsonl

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202eevil [bold red]x[/] \x9b31m"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    write_tokenizer(folder / "tokenizer")
    hostile = {"prompt": HOSTILE, "responses": ["one", HOSTILE, "three"], "scores": [1, 2, 3]}
    packed(
        folder,
        {"dataset": "prompt_responses", "path": str(write_jsonl(folder / "\x1b[31m.jsonl", [hostile]))},
        {"dataset": "gsm8k", "path": str(write_jsonl(folder / "g.jsonl", p.GSM8K))},
    )
    return folder / "store"


def test_prompts_are_shown_as_the_model_sees_them(store: Path) -> None:
    tokenizer = load_tokenizer(store.parent / "tokenizer")
    scoring = ScoringPrompts(RefereeConfig(), tokenizer)
    orders = set()
    for seed in range(8):
        for shown in draw_prompts(store, read_manifest(store), None, 5, None, seed):
            ids = tokenizer.encode(shown.text)
            if isinstance(shown.prompt, PreferencePrompt):
                rendered = [scoring.render(shown.prompt.messages, shown.prompt.responses, s) for s in range(40)]
                assert ids in {scored.prompt_ids for scored in rendered if scored}
                orders.add(ids)
            else:
                assert ids == tokenizer.encode_chat(shown.prompt.messages)
    assert len(orders) > 1


def test_nothing_acts_on_the_terminal(store: Path) -> None:
    out = io.StringIO()
    inspect_store(store, None, 3, None, 0, Console(file=out, force_terminal=False, width=200))
    text = out.getvalue()
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(text)
    assert "[bold red]x[/]" in text
    assert "evil" in text  # its bidi mark never gets into a scoring prompt
    assert "Put the final answer in \\boxed{}." in text
    assert visible("a\tb\n\x00\r\u202e") == "a\tb\n\\x00\\r\\u202e"


def test_the_command_and_its_refusals(store: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
        return result.exit_code, result.output

    code, said = run(store, "-n", 1, "--task", "reasoning")
    assert code == 0
    assert "1,200 pens" in said
    assert "Response 1" not in said
    assert "2 prompts, content" in said
    code, said = run(store, "--task", "instruction")
    assert code == 2
    assert "has no instruction prompts; it has reasoning, preference" in said
    other = write_tokenizer(tmp_path / "other", merges=(("a", "b"),))
    assert "is not the one that the store was packed with" in run(store, "--tokenizer", other)[1]
    assert "has no manifest.json" in run(tmp_path)[1]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in store.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = bytearray((copy / "shard_00000.parquet").read_bytes())
    shard[100] ^= 1
    (copy / "shard_00000.parquet").write_bytes(shard)
    code, said = run(copy)
    assert code == 2
    assert "was changed or damaged after packing" in said.replace("\n", " ")
