"""The roles: the policy as player and as referee, from prompts to groups with rewards to samples."""

from megatron_urpo.rollout.collect import Rollout, collect
from megatron_urpo.rollout.samples import SampleBatch, build_samples
from megatron_urpo.rollout.session import StalePolicyError, Verifier

__all__ = ["Rollout", "SampleBatch", "StalePolicyError", "Verifier", "build_samples", "collect"]
