"""`inspect`: what a packed store holds, and prompts of it exactly as the model sees them."""

import random
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from megatron_urpo.config.reward import RefereeConfig, TemplateConfig
from megatron_urpo.data.chat import HuggingFaceTokenizer, load_tokenizer
from megatron_urpo.data.errors import DataError
from megatron_urpo.data.manifest import Manifest, check_content, read_manifest
from megatron_urpo.data.store import load_prompts
from megatron_urpo.packing.chunks import model_text
from megatron_urpo.packing.tables import counts_table, histogram_table, left_out_table
from megatron_urpo.packing.visible import visible
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.types import TASKS, PreferencePrompt, Prompt


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt of the store and the text that the model is given, candidates in the order of one draw."""

    prompt: Prompt
    text: str


def inspect_store(
    folder: Path, tokenizer: Path | None, num_prompts: int, task: str | None, seed: int, console: Console | None = None
) -> None:
    """Prints tables and prompts. Raises DataError for a store that is not what was packed, or another tokenizer."""
    console = console or Console()
    manifest = read_manifest(folder)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("checking", total=sum(shard.bytes for shard in manifest.shards))
        check_content(folder, manifest, lambda num_bytes: progress.advance(bar, num_bytes))
    console.print(counts_table(manifest), histogram_table(manifest), left_out_table(manifest))
    console.print(f"{manifest.num_rows:,} prompts, content {manifest.content_hash[:16]}", markup=False)
    if num_prompts:
        for shown in draw_prompts(folder, manifest, tokenizer, num_prompts, task, seed):
            prompt = shown.prompt
            console.rule(Text(visible(f"{prompt.task} {prompt.id}").replace("\n", " ")))
            console.print(Text(visible(shown.text)), soft_wrap=True)


def draw_prompts(
    folder: Path, manifest: Manifest, tokenizer: Path | None, num_prompts: int, task: str | None, seed: int
) -> list[Shown]:
    """`num_prompts` of each task, or of `task` alone; of each the text whose tokens the model is given."""
    chat = _tokenizer(manifest, tokenizer)
    scoring = ScoringPrompts(RefereeConfig(template=TemplateConfig(**manifest.template)), chat)
    prompts = load_prompts([folder])
    rng = random.Random(seed)
    shown = []
    for name, sources in prompts.pools().items():
        if task in (None, name):
            indices = sorted(int(index) for source in sources.values() for index in source)
            for index in rng.sample(indices, min(num_prompts, len(indices))):
                prompt = prompts[index]
                shown.append(Shown(prompt, model_text(_permuted(prompt, rng), chat, scoring)))
    if task in TASKS and not shown:
        raise DataError(f"{folder}: has no {task} prompts; it has {', '.join(manifest.counts)}")
    return shown


def _tokenizer(manifest: Manifest, path: Path | None) -> HuggingFaceTokenizer:
    packed_with = Path(manifest.tokenizer["path"])
    chat = load_tokenizer(path or packed_with, "--tokenizer")
    theirs = chat.identity()
    if any(manifest.tokenizer[name] != theirs[name] for name in theirs):
        raise DataError(f"--tokenizer: {path or packed_with} is not the one that the store was packed with")
    return chat


def _permuted(prompt: Prompt, rng: random.Random) -> Prompt:
    """Candidates in another order, as a scoring prompt shows them."""
    if not isinstance(prompt, PreferencePrompt):
        return prompt
    order = rng.sample(range(len(prompt.responses)), len(prompt.responses))
    responses, gold = tuple(prompt.responses[i] for i in order), tuple(prompt.gold[i] for i in order)
    return PreferencePrompt(prompt.id, prompt.messages, responses, gold, prompt.source)
