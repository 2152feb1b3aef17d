"""What a run needs of its GPUs, worked out before any is asked for: no GPU, no process group, no weights."""

from megatron_urpo.planning.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
