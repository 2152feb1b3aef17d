"""Engines that sample completions from the policy's weights."""

from megatron_urpo.inference.connect import connect

__all__ = ["connect"]
