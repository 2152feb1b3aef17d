"""Servers of one kind as one engine: requests spread over those that are healthy, the others brought back."""

from megatron_urpo.inference.fleet.engine import FleetEngine

__all__ = ["FleetEngine"]
