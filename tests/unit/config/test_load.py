"""A config file either becomes a config or one line that says what is wrong and what to do."""

from pathlib import Path

import pytest
import yaml

from megatron_urpo.config import Config, ConfigError, SftConfig, load_config, load_section, reference
from megatron_urpo.config.pack import PackConfig

MINIMAL = "run_dir: runs/x\nmodel: {path: m}\ndata: {train: [a.jsonl]}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_are_the_recipe(file: Path) -> None:
    config, _ = load_config(file)
    assert (config.data.prompts_per_step, config.rollout.completions_per_prompt, config.loss.epochs) == (256, 8, 4)
    assert (config.optimizer.lr, config.optimizer.schedule) == (5e-7, "cosine")
    assert (config.loss.clip_low, config.loss.clip_high, config.rollout.max_new_tokens) == (0.2, 0.28, 4096)
    first, second = config.data.curriculum
    assert (first.until, set(first.mix)) == (100, {"preference", "reasoning"})
    assert (second.until, set(second.mix.values())) == (None, {1.0})


def test_overrides_win_and_are_typed(file: Path) -> None:
    config, _ = load_config(file, ["optimizer.lr=1e-4", "data.prompts_per_step=12", "model.dtype=float32"])
    assert (config.optimizer.lr, config.data.prompts_per_step, config.model.dtype) == (1e-4, 12, "float32")


def test_resolved_text_loads_again_and_says_where_values_came_from(file: Path, tmp_path: Path) -> None:
    config, text = load_config(file, ["optimizer.lr=1e-4"])
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_config(again)[0] == config
    lines = {line.split("#")[0].strip(): line.split("# ")[1] for line in text.splitlines() if "#" in line}
    assert lines["lr: 0.0001"] == "from the command line"
    assert lines["path: m"] == "from config.yaml"
    assert lines["clip_high: 0.28"] == "default"
    assert all(line.lstrip()[0].isalpha() for line in text.splitlines())  # one line for each value
    assert yaml.safe_load(text)["referee"]["template"]["prompt"] == config.referee.template.prompt


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.learning_rate=1", ["optimizer.learning_rate", "unknown key", "known keys here: lr"]),
        ("rollout.temprature=1", ["rollout.temprature", "did you mean `temperature`?"]),
        ("rolout.engine=embedded", ["rolout", "did you mean `rollout`?"]),
        ("data.curriculum=[{mixx: 1, mix: {reasoning: 1}}]", ["data.curriculum.0.mixx", "did you mean `mix`?"]),
        ("loss.epochs=many", ["loss.epochs", "valid integer", "'many'"]),
        ("loss.epochs=0", ["loss.epochs", "greater than 0", "got 0"]),
        ("rollout.temperature=-1", ["rollout.temperature", "greater than 0"]),
        ("model.spec=cuda", ["model.spec", "'auto', 'torch' or 'te'", "'cuda'"]),
        ("fp8.format=e5m2", ["fp8.format", "'none', 'e4m3' or 'hybrid'", "'e5m2'"]),
        ("fp8.recipe=custom", ["fp8.recipe", "'blockwise' or 'mxfp8'", "'custom'"]),
        ("fp8.recepie=mxfp8", ["fp8.recepie", "did you mean `recipe`?"]),
        ("rollout.completions_per_prompt=1", ["completions_per_prompt: 1 is below 2", "set it to 2 or more"]),
        ("loss.minibatches=5", ["256 does not divide by loss.minibatches 5", "256 / 5 = 51.20", "use 255 or 260"]),
        ("parallel.sequence=true", ["parallel.sequence", "parallel.tensor 1"]),
        ("optimizer.min_lr=1", ["optimizer.min_lr", "above optimizer.lr"]),
        ("data.curriculum=[]", ["data.curriculum: is empty"]),
        ("data.curriculum=[{until: 5, mix: {reasoning: 1}}]", ["last phase ends at step 5"]),
        ("data.curriculum=[{until: 5, mix: {poetry: 1}}]", ["data.curriculum.0.mix.poetry", "'reasoning'"]),
        ("data.curriculum=[{mix: {reasoning: 0}}]", ["weights sum to 0"]),
        (
            "data.curriculum=[{until: 5, mix: {reasoning: 1}}, {until: 5, mix: {reasoning: 1}}, {mix: {reasoning: 1}}]",
            ["data.curriculum.1.until: 5 is not above 5"],
        ),
        ("referee.score_range=[3, 3]", ["referee.score_range: [3, 3] is empty"]),
        ("referee.template.prompt=Score!", ["referee.template.prompt: has no {question}"]),
        ("referee.template.response=x", ["referee.template.response: has no {response}"]),
        ("model.path.sub=1", ["model.path.sub=1", "holds a plain value"]),
        ("num_steps", ["'num_steps' has no `=`"]),
        ("num_steps=[", ["not readable as YAML"]),
    ],
)
def test_mistakes_are_one_clear_line(file: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


def test_every_mistake_is_told(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["num_steps=0", "loss.epochs=0"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [(None, "does not exist"), ("a: [", "not readable as YAML"), ("- 1", "holds list"), ("", "holds NoneType")],
)
def test_unreadable_files(tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_config(path)


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("run_dir: x\n")
    with pytest.raises(ConfigError, match=r"model: is missing; .*\ndata: is missing"):
        load_config(path)


def test_shipped_configs_load() -> None:
    examples = Path(__file__).parents[3] / "examples"
    found = 0
    for path in examples.rglob("*.yaml"):
        if ".cache" in path.parts:
            continue
        found += 1
        if path.name == "pack.yaml":
            load_section(PackConfig, path)
        elif "output:" in path.read_text():
            load_section(SftConfig, path)
        else:
            load_config(path)
    assert found >= 2


@pytest.mark.parametrize("schema", [Config, SftConfig])
def test_reference_names_every_value_and_loads(schema: type[Config] | type[SftConfig], file: Path) -> None:
    tree = yaml.safe_load(reference(schema))
    given = yaml.safe_load(MINIMAL) | {"output": "o", "num_steps": 3}
    for section, values in given.items():
        if section in tree:
            tree[section] = tree[section] | values if isinstance(values, dict) else values
    if schema is SftConfig:
        tree["data"]["train"] = "a.jsonl"
    loaded = schema.model_validate(tree)
    assert set(tree) == set(schema.model_fields)
    assert loaded.optimizer == schema.model_fields["optimizer"].default
    assert loaded.parallel == schema.model_fields["parallel"].default


def test_reference_of_packing_loads(file: Path) -> None:
    tree = yaml.safe_load(reference(PackConfig)) | {"output": "o", "tokenizer": "t"}
    tree["sources"] = [{"dataset": "gsm8k", "path": "a.jsonl"}]
    loaded = PackConfig.model_validate(tree)
    assert loaded.sources[0].path == ("a.jsonl",)
    assert loaded.duplicates == PackConfig.model_fields["duplicates"].default
