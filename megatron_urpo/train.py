"""The loop. Every rank runs it; rank 0 talks to the engine, the others get its results.

    prompts -> rollout -> samples -> update -> send_weights -> record

A rollout at step n is written by policy version n, or one older with `rollout.overlap`; the update makes version n + 1.
"""

from megatron_urpo.checkpoints import load_checkpoint, run_state, save_checkpoint
from megatron_urpo.collecting import InStep, OneAhead
from megatron_urpo.config import Config
from megatron_urpo.data.stream import PromptStream
from megatron_urpo.health import Health
from megatron_urpo.policy.parallel import Parallel, joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.update import update
from megatron_urpo.preflight import check_inputs
from megatron_urpo.rank0 import Rank0, due
from megatron_urpo.rollout.samples import build_samples
from megatron_urpo.signals import StopRequest
from megatron_urpo.weights import release_memory, send_weights


def train(config: Config, resolved: str = "") -> int:
    """Trains to `config.num_steps` or until told to stop; returns the process's exit code.

    `resolved` is the config's text with the origin of each value. Raises ConfigError and DataError for input that
    cannot work, TrainingStopped when step after step teaches nothing.
    """
    inputs = check_inputs(config)
    with joined_ranks(config.parallel, config.seed) as parallel, StopRequest() as stop:
        policy = new_policy(config, parallel)
        prompts = inputs.stream(config)
        step, health = resume(config, policy, prompts)
        with Rank0.open(config, inputs, parallel, step) as rank0:
            send_weights(policy, rank0, version=step)
            parallel.from_rank0(rank0.begin, step, resolved, parallel.world_size)
            batches = (OneAhead if config.rollout.overlap else InStep)(rank0, policy, prompts)
            stopped = False
            while step < config.num_steps and not stopped:
                rollout = batches.take(step)
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
                stopped = parallel.any(stop.received is not None)
                if stopped or due(step, config.checkpoint.every, config.num_steps):
                    save_checkpoint(config, policy, run_state(policy, step, health, batches.stream_state()))
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


def resume(config: Config, policy: Policy, prompts: PromptStream) -> tuple[int, Health]:
    """Loads the newest checkpoint into `policy` and `prompts`; (step, health), as new on a fresh start."""
    state = load_checkpoint(config.run_dir, policy) if config.checkpoint.resume else None
    if state is None:
        return 0, Health()
    prompts.load_state(state.stream)
    return state.step, state.health
