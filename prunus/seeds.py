"""One seed per random role, derived from (replicate, role), so that no two roles share a stream.

Examples of roles: "init", "order", "ties", "dropout", "split", "codebook", ...
"""

import hashlib

import torch


def derive_seed(seed: int, *role: str | int) -> int:
    """Derive the 63-bit seed of a role; it is the same on every platform and in every version.

    >>> derive_seed(0, "init") == derive_seed(0, "init") != derive_seed(0, "order")
    True
    """
    text = "/".join(str(part) for part in (seed, *role))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *role: str | int) -> torch.Generator:
    """Make a CPU generator that is seeded with `derive_seed(seed, *role)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *role))
