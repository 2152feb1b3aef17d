"""The recipe's own pack config on small files of every dataset's schema: all three tasks come out, 1:1:1, and what its
benchmarks hold is left out. And a run that was not packed for is refused before it starts."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from megatron_urpo.cli import main
from megatron_urpo.config import load_config
from megatron_urpo.data.manifest import read_manifest
from megatron_urpo.data.store import load_prompts
from megatron_urpo.data.stream import PromptStream
from tests.support import published as p
from tests.support.packing import write_tokenizer
from tests.support.published import skywork, turns, write_json, write_jsonl, write_parquet
from tests.support.real_rows import ROOT
from tests.support.world import write_chain_model, write_config

RECIPE = ROOT / "examples" / "recipe_data"
AIME = "Every morning Aya goes for a walk of nine kilometres and stops at a coffee shop afterwards for some minutes."
CONTAMINATED = {
    "Skywork-OR1-RL-Data": skywork("train-math-x", f"{AIME} Give it within \\boxed{{}}.", "204"),
    "Skywork-Reward-Preference-80K-v0.2": {"chosen": turns(p.REWARD_BENCH[0]["prompt"], "By fields."),
                                           "rejected": turns(p.REWARD_BENCH[0]["prompt"], "Magic."), "source": "x"},
    "prompt-collection-v0.1": {"dataset": "x", "context": "", "id": "9",
                               "context_messages": turns(f"Please: {p.ALPACA[0]['instruction']}")},
}  # fmt: skip


def publish(folder: Path) -> None:
    """Every dataset below `published`, in the kinds of files that their publishers use."""
    root = folder / "published"
    write_parquet(root / "Skywork-OR1-RL-Data" / "data" / "math-00000.parquet",
                  [*p.SKYWORK[:2], CONTAMINATED["Skywork-OR1-RL-Data"]])  # fmt: skip
    write_parquet(root / "Skywork-OR1-RL-Data" / "data" / "code-00000.parquet", p.SKYWORK[2:])
    write_jsonl(root / "HelpSteer3" / "preference" / "train.jsonl.gz", p.HELPSTEER3)
    write_jsonl(root / "UltraFeedback" / "sharegpt.jsonl", p.ULTRAFEEDBACK)
    name = "Skywork-Reward-Preference-80K-v0.2"
    write_parquet(root / name / "train.parquet", [*p.SKYWORK_PREFERENCE, CONTAMINATED[name]])
    write_parquet(root / "Nectar" / "data" / "rlaif.parquet", p.NECTAR)
    write_json(root / "offsetbias" / "train.json", p.OFFSETBIAS)
    name = "prompt-collection-v0.1"
    write_parquet(root / name / "data" / "train.parquet", [*p.PROMPT_COLLECTION, CONTAMINATED[name]])
    evaluation = root / "evaluation"
    write_parquet(evaluation / "aime" / "aime24.parquet", [skywork("test-math-aime24", AIME, "204")])
    write_jsonl(evaluation / "hmmt" / "hmmt.jsonl", [{"problem": "How many ways are there to tile it?", "answer": 7}])
    write_jsonl(evaluation / "MATH-500" / "test.jsonl", p.MATH500)
    write_jsonl(evaluation / "gsm8k" / "test.jsonl", p.GSM8K)
    write_jsonl(evaluation / "HumanEval.jsonl.gz", p.HUMANEVAL)
    write_json(evaluation / "alpaca_eval" / "outputs.json", p.ALPACA)
    write_parquet(evaluation / "reward-bench" / "filtered.parquet", p.REWARD_BENCH)
    write_json(evaluation / "RMB" / "bon.json", p.RMB)


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    publish(folder)
    tokenizer = write_tokenizer(folder / "tokenizer")
    before = Path.cwd()
    os.chdir(folder)  # the recipe's paths are relative to where its data lie
    try:
        result = run("pack", RECIPE / "pack.yaml", f"tokenizer={tokenizer}", "processes=1")
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.stderr
    return folder / "data" / "recipe_store"


def test_every_source_is_read_and_benchmarks_are_left_out(store: Path) -> None:
    manifest = read_manifest(store)
    assert manifest.counts == {
        "reasoning": {"skywork_or1": 5},
        "preference": {"helpsteer3": 2, "nectar": 1, "offsetbias": 2, "skywork_preference": 1, "ultrafeedback": 1},
        "instruction": {"prompt_collection": 2},
    }
    assert manifest.removed["helpsteer3"] == {"read": 3, "constant_ranking": 1}
    removed = [json.loads(line) for line in (store / "removed.jsonl").read_text().splitlines()]
    contaminated = {
        row["source"]: row["detail"].rpartition("/")[2] for row in removed if row["cause"] == "contaminated"
    }
    assert contaminated == {
        "skywork_or1": "aime24.parquet:1",
        "skywork_preference": "filtered.parquet:1",
        "prompt_collection": "outputs.json:1",
    }
    assert (store / "rejected.jsonl").read_text() == ""


def test_the_recipes_run_mixes_the_tasks_equally(store: Path) -> None:
    config, _ = load_config(RECIPE / "config.yaml")
    assert config.data.train == (Path("data/recipe_store"),)
    limits = yaml.safe_load((RECIPE / "pack.yaml").read_text())["max_prompt_tokens"]
    assert limits == {"player": config.rollout.max_prompt_tokens, "referee": config.referee.max_prompt_tokens}
    stream = PromptStream(load_prompts([store]), config.data.curriculum, config.data.prompts_per_step, config.seed)
    warm_up, joint = (Counter(prompt.task for prompt in stream.next_batch(step)) for step in (0, 100))
    assert warm_up == {"reasoning": 128, "preference": 128}
    assert sorted(joint.values()) == [85, 85, 86]


def test_a_run_on_another_tokenizer_is_refused_at_once(store: Path, tmp_path: Path) -> None:
    chain = {"assistant": {"\\boxed{": 1.0}}
    write_chain_model(tmp_path / "model", chain)
    config = write_config(tmp_path)
    refused = run("train", config, f"data.train=[{store}]")
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: data.train: {store}: was packed with another tokenizer")
    assert not (tmp_path / "run").exists()
    # Packed with the run's own tokenizer and scoring prompt it is taken, up to the run's own limits.
    tree = yaml.safe_load(config.read_text())
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    source = {"dataset": "prompt_chosen_rejected", "path": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    pack = {"output": str(tmp_path / "store"), "tokenizer": str(tmp_path / "model"), "processes": 1,
            "template": tree["referee"]["template"], "sources": [source]}  # fmt: skip
    (tmp_path / "pack.yaml").write_text(yaml.safe_dump(pack))
    assert run("pack", tmp_path / "pack.yaml", "duplicates.near=0").exit_code == 0
    arguments = ("train", config, f"data.train=[{tmp_path / 'store'}]", "data.curriculum=[{mix: {preference: 1}}]",
                 "num_steps=1")  # fmt: skip
    refused = run(*arguments, "referee.max_prompt_tokens=5")
    assert "tokens, referee.max_prompt_tokens is 5; raise it" in refused.stderr
    refused = run(*arguments, "referee.template.response='{index}: {response}'")
    assert "was packed with another scoring prompt" in refused.stderr
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    (transcript,) = (tmp_path / "run" / "transcripts").iterdir()
    assert {json.loads(line)["prompt"]["id"].split("/")[0] for line in transcript.read_text().splitlines()} == {
        "prompt_chosen_rejected"
    }
