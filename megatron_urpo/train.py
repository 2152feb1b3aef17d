"""The loop. Every rank runs it; rank 0 talks to the engine, the others get its results.

    prompts -> rollout -> samples -> update -> push_weights -> record

A rollout at step n is written by policy version n; the update makes version n + 1.
"""

from megatron_urpo.checkpoints import load_checkpoint, run_state, save_checkpoint
from megatron_urpo.config import Config
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import update
from megatron_urpo.preflight import check_inputs
from megatron_urpo.rank0 import Rank0, due
from megatron_urpo.rollout.samples import build_samples
from megatron_urpo.signals import StopRequest
from megatron_urpo.weight_sync.push import push_weights


class NoSignalError(RuntimeError):
    """Step after step no group had rewards that differ: there is nothing to learn from."""


def train(config: Config, resolved: str = "") -> int:
    """Trains to `config.num_steps` or until told to stop; returns the process's exit code.

    `resolved` is the config's text with the origin of each value. Raises ConfigError and DataError for input that
    cannot work, NoSignalError when training has nothing to learn from.
    """
    inputs = check_inputs(config)
    with joined_ranks(config.parallel, config.seed) as parallel, StopRequest() as stop:
        updates = config.loss.epochs * config.loss.minibatches
        policy = build_policy(config.model, config.optimizer, config.parallel, parallel, config.num_steps, updates)
        prompts = inputs.stream(config)
        step, empty_steps = resume(config, policy, prompts)
        with Rank0.open(config, inputs, parallel, step) as rank0:
            push_weights(policy, rank0.engine, version=step)
            parallel.from_rank0(rank0.begin, step, resolved, parallel.world_size)
            stopped = False
            while step < config.num_steps and not stopped:
                batch = prompts.next_batch(step)
                rollout = parallel.from_rank0(rank0.collect, batch, step)
                samples = build_samples(rollout.groups)
                stats = update(policy, samples.samples, config.loss)
                empty_steps = 0 if samples.samples else empty_steps + 1
                step += 1
                stats |= push_weights(policy, rank0.engine, version=step)
                parallel.from_rank0(rank0.record, step, rollout, samples, stats)
                check_signal(empty_steps, config, samples.num_dropped)
                stopped = parallel.any(stop.received is not None)
                if stopped or due(step, config.checkpoint.every, config.num_steps):
                    save_checkpoint(config, policy, run_state(policy, step, empty_steps, prompts.state()))
            if not stopped:
                policy.write_model(config.run_dir / "model", config.model.path)
                parallel.from_rank0(rank0.finish)
    return stop.exit_code if stopped else 0


def resume(config: Config, policy: Policy, prompts: PromptStream) -> tuple[int, int]:
    """Loads the newest checkpoint into `policy` and `prompts`; (step, empty steps before it), 0 on a fresh start."""
    state = load_checkpoint(config.run_dir, policy) if config.checkpoint.resume else None
    if state is None:
        return 0, 0
    prompts.load_state(state.stream)
    return state.step, state.empty_steps


def check_signal(empty_steps: int, config: Config, dropped: dict[str, int]) -> None:
    """Raises NoSignalError after `config.max_empty_steps` steps in a row without a sample."""
    if empty_steps < config.max_empty_steps:
        return
    cause = max(dropped, key=lambda name: dropped[name])
    hints = {
        "no_signal": "all completions of each group earned the same: the prompts are too hard, too easy, or the"
        " completions are all alike",
        "prompt_too_long": "questions are longer than rollout.max_prompt_tokens",
        "scoring_prompt_too_long": "scoring prompts are longer than referee.max_prompt_tokens",
    }
    hint = hints.get(cause, "the referee's verdicts cannot be read: warm it up on preference data first")
    raise NoSignalError(
        f"{empty_steps} steps in a row had nothing to learn from; most groups were dropped as {cause}: {hint}"
        " (the transcripts of the run folder show them)"
    )
