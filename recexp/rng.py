"""Integer mixing: seeds from counters, and uniform numbers from keys.

The results are part of what makes runs reproducible. They must never change.
"""

from __future__ import annotations

from torch import Tensor

# Increment and multiplier of splitmix64: Steele, Lea, Flood 2014, Fast splittable pseudorandom
# number generators, https://doi.org/10.1145/2660193.2660195.
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIER = 0xBF58476D1CE4E5B9
_HASH_MULTIPLIERS = (0x2127599BF4325C37, 0x369DEA0F31A53F85)


def mix(*numbers: int) -> int:
    """A seed in [0, 2**63) from several numbers; a change in any of them gives an unrelated one."""
    seed = 0
    for number in numbers:
        seed = (seed ^ (number + _INCREMENT)) * _MULTIPLIER % 2**64
        seed ^= seed >> 31
    return seed % 2**63


def hash_uniform(key: Tensor) -> Tensor:
    """A float32 in [0, 1) with 24 random bits per int64 key, always the same for a key.

    Rounds of xor-shift and multiplication, in which every input bit affects every output bit.
    """
    x = key
    for multiplier in _HASH_MULTIPLIERS:
        x = _fold(x) * multiplier
    return (_fold(x) & 0xFFFFFF).float() / 2**24


def _fold(x: Tensor) -> Tensor:
    # The mask makes the shift logical: int64 tensors shift the sign bit in.
    return x ^ ((x >> 32) & 0xFFFFFFFF)
