"""Random numbers that depend on a seed and a name alone: the same on every machine, whoever asks first."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def bits(seed: int, name: str, count: int) -> NDArray[np.uint64]:
    """So many words of 64 random bits, of a counter-based generator whose stream NumPy promises to keep."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(count)


def hashed(seed: int, name: str, count: int, num_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A bucket and a sign for each of `count` numbers, both (count,)."""
    words = bits(seed, name, count)
    buckets = ((words >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)
    return buckets.astype(np.int64), 1 - 2 * (words & np.uint64(1)).astype(np.float32)


def signs(seed: int, name: str, rows: int, columns: int) -> NDArray[np.float32]:
    """A matrix of +1 and -1, (rows, columns)."""
    words = bits(seed, name, -(-rows * columns // 64))
    drawn = np.unpackbits(words.view(np.uint8), count=rows * columns)
    return (1 - 2 * drawn.astype(np.float32)).reshape(rows, columns)
