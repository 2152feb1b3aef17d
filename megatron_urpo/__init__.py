"""URPO on Megatron-Core: one model is player and referee, trained in one GRPO loop."""

__version__ = "0.1.0"
