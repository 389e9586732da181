"""Random numbers of splits, angles and choices: the same in every run, on any machine, with any version of NumPy."""

from __future__ import annotations

import numpy as np


def random_bits(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Counter-based SplitMix64 (Steele, Lea and Flood, 2014): uint64 [count], determined by seed and stream."""
    key = _mix(np.array([seed % 2**64], dtype=np.uint64)) ^ _mix(np.array([~stream % 2**64], dtype=np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(_mix(key) + steps)


def uniform(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Float64 [count], uniform in [0, 1)."""
    return (random_bits(count, seed, stream) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """A random permutation of range(count), int64 [count]."""
    return np.argsort(random_bits(count, seed, stream), kind="stable")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64. NumPy's array arithmetic is modulo 2^64, as it should be."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
