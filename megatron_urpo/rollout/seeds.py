"""Seeds as a pure function of what they are for."""

import hashlib
import json

SEED_BITS = 63


def derive_seed(*parts: int | str) -> int:
    """A number below 2**63 that depends on every part, on their order and on their types."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)
