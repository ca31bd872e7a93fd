"""One seed a random role, derived from (replicate, role), so that no two roles share a stream.

Every role has its own: "init", "order", "ties", "dropout", "split", "codebook", ...
"""

import hashlib

import torch


def derive(seed: int, *role: str | int) -> int:
    """A 63-bit seed for `role` in replicate `seed`; the same on every platform and in every version.

    >>> derive(0, "init") == derive(0, "init") != derive(0, "order")
    True
    """
    text = "/".join(str(part) for part in (seed, *role))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *role: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive(seed, *role)`."""
    return torch.Generator().manual_seed(derive(seed, *role))
