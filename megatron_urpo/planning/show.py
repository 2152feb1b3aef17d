"""A plan as one table for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from megatron_urpo.config import Config
from megatron_urpo.planning.gpus import RESERVE
from megatron_urpo.planning.memory import RankMemory
from megatron_urpo.planning.plan import Plan, gib
from megatron_urpo.planning.search import Candidate

PLACES = {
    "embedded": "in rank 0's process",
    "beside": "on GPUs that train too",
    "apart": "on GPUs of their own in the first node",
    "attached": "already up, on GPUs of their own",
}


def show(plan: Plan, config: Config, every_layout: bool = False) -> RenderableType:
    """One table: memory by stage, generation, weight sync, the batch in words, and what does not fit."""
    table = Table(title=_title(plan, config), title_justify="left", show_lines=False, expand=False)
    table.add_column("")
    for rank in plan.ranks:
        table.add_column(f"a GPU of stage {rank.stage}", justify="right")
    _memory_rows(table, plan)
    lines = [
        f"generation: {_engine_words(plan)}",
        f"weight sync: {gib(plan.sync_bytes)} a step to each server"
        + (f" in {plan.sync_buckets} buckets" if plan.sync_buckets else ", in this process"),
        *(f"a step {phase.words(config, plan.data)}" for phase in plan.phases),
        f"scoring prompt: {plan.scoring.words(config)}",
    ]
    parts: list[RenderableType] = [table, *(Text(line) for line in lines)]
    if config.fp8.format != "none":
        parts.append(Text("FP8 copies of weights are not counted"))
    shown = plan.fits if every_layout else ()
    if every_layout:
        parts.append(Text(f"{len(shown)} layouts of {plan.gpus} GPUs fit, the cheapest first:"))
    parts += [Text(f"  {_candidate(item)}") for item in shown]
    if plan.problems:
        parts += [Text(f"does not fit: {problem}", style="bold red") for problem in plan.problems]
    else:
        parts.append(Text("fits (a prediction; nothing was run)", style="bold green"))
    return Group(*parts)


def _title(plan: Plan, config: Config) -> str:
    layout = config.parallel
    servers = f" + {plan.engine.gpus_of_its_own} for servers" if plan.engine.gpus_of_its_own else ""
    return (
        f"{plan.num_parameters / 1e9:.2f} billion parameters on {plan.gpus} {plan.gpu.name}{servers}:"
        f" TP {layout.tensor} x PP {layout.pipeline} x DP {plan.data}, recompute {layout.recompute}"
    )


def _memory_rows(table: Table, plan: Plan) -> None:
    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    def sizes(name: str, of: "list[int]") -> None:
        row(name, *(gib(value) for value in of))

    ranks: list[RankMemory] = list(plan.ranks)
    row("parameters", *(f"{rank.parameters:,}" for rank in ranks))
    sizes("weights", [rank.states.weights for rank in ranks])
    sizes("gradients (float32)", [rank.states.gradients for rank in ranks])
    sizes("optimizer", [rank.states.optimizer for rank in ranks])
    sizes("  not distributed it were", [rank.unsharded_optimizer for rank in ranks])
    if any(rank.reference for rank in ranks):
        sizes("reference model", [rank.reference for rank in ranks])
    sizes("activations", [rank.activations.kept for rank in ranks])
    row("  micro-batches under way", *(str(rank.activations.in_flight) for rank in ranks))
    sizes("  for a moment: a layer's backward pass", [rank.activations.working for rank in ranks])
    sizes("  or log-probabilities in chunks", [rank.activations.logprobs for rank in ranks])
    sizes("weight-sync buffers", [rank.sync_buffers for rank in ranks])
    sizes("to train, at the peak", [rank.peak for rank in ranks])
    sizes("to generate, at least", [plan.engine_bytes if plan.engine.placement != "attached" else 0 for _ in ranks])
    sizes("in reserve (assumed)", [RESERVE for _ in ranks])
    sizes("the GPU has", [plan.gpu.memory for _ in ranks])


def _engine_words(plan: Plan) -> str:
    engine = plan.engine
    if engine.placement == "embedded":
        return f"embedded, {PLACES['embedded']}: {gib(engine.weights)} of weights, of which half only during an update"
    words = (
        f"{engine.num_servers} {engine.kind} servers x TP {engine.tensor}, {PLACES[engine.placement]};"
        f" {gib(engine.weights)} of weights and {engine.kv_bytes_per_token:,} bytes a token on each GPU; a KV cache of"
        f" {plan.kv_tokens:,} tokens at a share of {engine.usual_fraction():g}"
    )
    return words + (f" (at most {plan.fraction:.2f})" if plan.fraction is not None else "")


def _candidate(item: Candidate) -> str:
    return f"{gib(item.peak):>10}  {item.overrides()}"
