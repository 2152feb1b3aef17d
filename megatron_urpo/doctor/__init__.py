"""What a node lacks for a run: facts are gathered in one place, and each is judged by a function of its own."""

from megatron_urpo.doctor.checks import Check, examine
from megatron_urpo.doctor.facts import Facts, gather_facts

__all__ = ["Check", "Facts", "examine", "gather_facts"]
