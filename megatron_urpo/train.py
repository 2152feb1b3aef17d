"""The loop. Every rank runs it; rank 0 talks to the engine, the others get its results.

    prompts -> rollout -> samples -> update -> send_weights -> record

A rollout at step n is written by policy version n, or one older with `rollout.overlap`; the update makes version n + 1.
"""

import click

from megatron_urpo.checkpoints.run_lock import run_lock
from megatron_urpo.checkpoints.saving import Saver
from megatron_urpo.checkpoints.state import Ahead, RunState, load_checkpoint, newest_checkpoint
from megatron_urpo.config import Config
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.health import Health
from megatron_urpo.loop.collecting import InStep, OneAhead
from megatron_urpo.loop.rank0 import Rank0, due
from megatron_urpo.loop.signals import StopRequest
from megatron_urpo.loop.weights import release_memory, send_weights
from megatron_urpo.policy.parallel import Parallel, joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import update
from megatron_urpo.preflight.inputs import check_inputs
from megatron_urpo.rollout.samples import build_samples


def train(config: Config, resolved: str = "") -> int:
    """Trains to `config.num_steps` or until told to stop; returns the process's exit code.

    `resolved` is the config's text with the origin of each value. Raises ConfigError and DataError for input that
    cannot work, TrainingStopped when step after step teaches nothing.
    """
    inputs = check_inputs(config)
    with (
        StopRequest() as stop,
        joined_ranks(config.parallel, config.seed, config.launch) as parallel,
        run_lock(config.run_dir, parallel, click.echo),
    ):
        policy = new_policy(config, parallel)
        prompts = inputs.stream(config)
        step, health, ahead = resume(config, policy, prompts)
        with (
            Rank0.open(config, inputs, parallel, step, stop) as rank0,
            Saver(config, policy, step) as saver,
            parallel.naming_errors(),
        ):
            send_weights(policy, rank0, version=step)
            parallel.from_rank0(rank0.begin, step, resolved, parallel.world_size)
            overlap = config.rollout.overlap
            batches = OneAhead(rank0, policy, prompts, ahead) if overlap else InStep(rank0, policy, prompts)
            stopped = False
            while step < config.num_steps and not stopped:
                rollout = batches.take(step)
                if rollout is None:  # told to stop: the step is not taken
                    stopped = True
                    break
                saver.settle()
                release_memory(rank0, parallel)
                samples = build_samples(rollout.groups)
                parallel.from_rank0(rank0.keep, step + 1, samples.samples)
                every = config.logging.task_gradients_every
                measure_tasks = every > 0 and due(step + 1, every, config.num_steps)
                stats = update(policy, samples.samples, config.loss, measure_tasks)
                health = health.after(len(samples.samples), stats)
                step += 1
                batches.settle()
                stats |= send_weights(policy, rank0, version=step)
                parallel.from_rank0(rank0.record, step, rollout, samples, stats)
                health.check(config, samples.num_dropped)
                stopped = parallel.any(stop())
                if not stopped and due(step, config.checkpoint.every, config.num_steps):
                    saver.save(RunState(step, health, *batches.position()))
            if stopped:
                saver.save(RunState(step, health, *batches.position()))
            saver.settle(wait=True)
            if not stopped:
                policy.write_model(config.run_dir / "model", config.model.path)
                parallel.from_rank0(rank0.finish)
    return stop.exit_code if stopped else 0


def new_policy(config: Config, parallel: Parallel) -> Policy:
    """The policy of a run at step 0."""
    return build_policy(
        config.model,
        config.optimizer,
        config.parallel,
        parallel,
        config.num_steps,
        config.loss.epochs * config.loss.minibatches,
        with_reference=config.loss.kl_coefficient > 0,
        fp8=config.fp8,
        temperature=config.rollout.temperature,
    )


def resume(config: Config, policy: Policy, prompts: PromptStream) -> tuple[int, Health, Ahead | None]:
    """Loads the newest checkpoint into `policy` and `prompts`; (step, health, batch ahead), as new on a fresh start."""
    folder = policy.parallel.from_rank0(newest_checkpoint, config.run_dir)
    if folder is None:
        return 0, Health(), None
    state = load_checkpoint(folder, policy)
    prompts.load_state(state.stream)
    return state.step, state.health, state.ahead
