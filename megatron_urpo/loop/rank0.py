"""What only rank 0 has: the engine, the verifier, the run folder and what a person sees. Elsewhere it stays empty."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from rich.console import Console

from megatron_urpo.config import Config
from megatron_urpo.evaluation.held_out import evaluate
from megatron_urpo.inference.embedded import EmbeddedEngine
from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.loop.engines import open_engine
from megatron_urpo.loop.parity import check_mismatch
from megatron_urpo.metrics import rollout_metrics
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.preflight.inputs import Inputs
from megatron_urpo.protocols import Abandoned, WeightReceiver, WeightsLost
from megatron_urpo.reporting import Progress, RunFolder, WandbLog, before_after_table, write_transcript
from megatron_urpo.reporting.batches import Origin
from megatron_urpo.reporting.report import ReportError, write_report
from megatron_urpo.reward.verifiable.verifier import RuleVerifier
from megatron_urpo.rollout.collect import Rollout, collect
from megatron_urpo.rollout.samples import SampleBatch
from megatron_urpo.types import GenerationRequest, Prompt, Sample

PROBE_TOKENS = 32


class NoRollout(Enum):
    """Why there are no groups: the engine lost its weights and needs them again, or the run was told to stop."""

    WEIGHTS_LOST = 1
    ABANDONED = 2


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens each `every` steps (0: never) and at the last one happens after `step`."""
    return step == last or (every > 0 and step % every == 0)


@dataclass
class Rank0:
    """Its methods are called through `Parallel.from_rank0`; `engine` and `receiver` are None on the other ranks."""

    config: Config
    inputs: Inputs
    engine: EmbeddedEngine | FleetEngine | None = None
    receiver: WeightReceiver | None = None
    stop: Callable[[], bool] = lambda: False
    verifier: RuleVerifier = field(init=False)
    folder: RunFolder = field(init=False)
    origin: Origin = field(init=False)
    progress: Progress = field(init=False)
    wandb: WandbLog = field(init=False)
    step_start: float = field(init=False)
    is_collecting: bool = False

    def begin(self, step: int, resolved: str, world_size: int) -> None:
        """Opens the run folder and forgets what was written there after `step`; all of it where that is 0."""
        self.step_start = time.perf_counter()
        self.folder.write_config(resolved)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.origin = Origin(self.config.model_dump(mode="json"), world_size, torch.get_num_threads(), device)
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        self.folder.write_environment(world_size, devices, self.inputs.code_isolation)
        self.folder.truncate_after(step or -1)
        if step:
            self.progress.say(f"resumed at step {step} from {self.config.run_dir}")
        else:
            self.folder.append_metrics(0, self.evaluate())  # step 0 is the model before training
        self.progress.begin()

    def collect(
        self, prompts: Sequence[Prompt], step: int, earlier: Sequence[Prompt] = (), version: int | None = None
    ) -> Rollout | NoRollout:
        """The groups of `step` by policy `version`, that of the step unless it is given.

        `earlier`: prompts of the same step that were collected before these.
        """
        assert self.engine is not None
        if not earlier:
            self.step_start = time.perf_counter()
        self.progress.phase("rollout")
        self.is_collecting = True
        try:
            rollout = collect(
                prompts,
                self.engine,
                self.inputs.tokenizer,
                self.verifier,
                self.config,
                step,
                earlier,
                version,
                self.stop,
            )
        except WeightsLost as error:
            self.progress.say(f"{error}; step {step + 1} is collected again")
            return NoRollout.WEIGHTS_LOST
        except Abandoned:
            self.progress.say(f"told to stop: step {step + 1} is not taken")
            return NoRollout.ABANDONED
        finally:
            self.is_collecting = False
        for reason in rollout.failures:
            self.progress.say(f"a prompt was given up: {reason}")
        self.progress.phase("update")
        return rollout

    def abandons(self) -> bool:
        """Whether what the engine writes is to be given up: in a rollout, but an evaluation belongs to a step."""
        return self.is_collecting and self.stop()

    def probe(self) -> dict[str, Sample]:
        """A short answer of each server, sampled as in training; none where the engine is in this process."""
        if not isinstance(self.engine, FleetEngine):
            return {}
        prompt_ids = self.inputs.tokenizer.encode_chat(self.inputs.prompts[0].messages)
        rollout = self.config.rollout
        request = GenerationRequest(
            prompt_ids=prompt_ids[: rollout.max_prompt_tokens],
            num_completions=1,
            max_new_tokens=min(PROBE_TOKENS, rollout.max_new_tokens),
            temperature=rollout.temperature,
            seed=self.config.seed,
        )
        return {
            name: Sample(0, "reasoning", request.prompt_ids, completion.token_ids, 0.0, completion.logprobs)
            for name, completion in self.engine.ask_each(request).items()
        }

    def keep(self, step: int, samples: Sequence[Sample]) -> None:
        """Writes down what `step` is about to learn from, so that it can be replayed even where the update dies."""
        self.folder.batches.write(step, samples, self.origin)

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the engine's version; none where no held-out data is configured, or all servers died."""
        assert self.engine is not None
        if not self.inputs.held_out:
            return {}
        start = time.perf_counter()
        self.progress.phase("evaluation")
        try:
            metrics = evaluate(self.engine, self.inputs.tokenizer, self.verifier, self.inputs.held_out, self.config)
        except WeightsLost as error:
            self.progress.say(f"{error}; this evaluation is left out")
            return {}
        return {**metrics, "time/evaluation": time.perf_counter() - start}

    def record(self, step: int, rollout: Rollout, batch: SampleBatch, stats: dict[str, float]) -> None:
        """One line of metrics.jsonl and one transcript for the step that ended; stops a run whose engine drifts."""
        assert self.engine is not None
        config = self.config
        seconds = time.perf_counter() - self.step_start
        metrics = {
            **rollout_metrics(rollout.groups, batch.num_dropped, config),
            **stats,
            **self.engine.take_counts(),
            **{f"time/{name}": value for name, value in rollout.seconds.items()},
            "time/step": seconds,
        }
        if due(step, config.evaluation.every, config.num_steps):
            metrics |= self.evaluate()
        if config.logging.transcripts:
            write_transcript(self.folder.transcript_file(step), rollout.groups, batch.causes, batch.advantages)
        not_finite = bool(metrics.get("policy/not_finite"))
        self.folder.batches.settle(step, not_finite, config.checkpoint.keep_batches)
        self.folder.append_metrics(step, metrics)
        self.wandb.log(step, metrics)
        self.progress.step(step, metrics)
        check_mismatch(config, metrics, self.engine.describe())

    def finish(self) -> None:
        """The table of before and after, where both were measured, and the report."""
        lines = [line for line in self.folder.read_metrics() if any(name.startswith("eval/") for name in line)]
        if len(lines) > 1:
            Console().print(before_after_table(lines[0], lines[-1]))
        self._report()

    def _report(self) -> None:
        """A report that cannot be written does not fail a run whose model is already on disk."""
        try:
            self.progress.say(f"report: {write_report(self.config.run_dir)}")
        except (OSError, ReportError) as error:
            self.progress.say(f"no report: {error}")

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, config: Config, inputs: Inputs, parallel: Parallel, start: int, stop: Callable[[], bool]
    ) -> Iterator["Rank0"]:
        """On rank 0 opens everything and closes it on every way out. `stop`: whether the run was told to."""
        room = cls(config, inputs, stop=stop)
        with contextlib.ExitStack() as stack:
            if parallel.rank == 0:
                room.folder = RunFolder(config.run_dir)
                room.progress = stack.enter_context(Progress(config.num_steps, start))
                stop_ids, say = inputs.tokenizer.stop_token_ids, room.progress.say
                opened = open_engine(config, inputs.shape, stop_ids, say, room.abandons)
                room.engine, room.receiver = stack.enter_context(opened)
                room.verifier = RuleVerifier(config.verifier)
                stack.callback(room.verifier.close)
                room.wandb = WandbLog(config)
                stack.callback(room.wandb.close)
            yield room
