"""Counter-based random draws: each is a pure function of (conversation key, turn, purpose).

There is no state: a draw depends neither on the batch nor on earlier draws. The generator is SplitMix64 (Steele, Lea
& Flood 2014, "Fast splittable pseudorandom number generators") at a given position: the hashed key is where a
conversation's stream begins, (turn, purpose) is the offset.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import nb

PURPOSES = 4096
"""Purposes of one turn are 0 … PURPOSES - 1; scenarios use those below `WORDING`."""

WORDING = 1000
"""First purpose of the draws that choose wordings."""

SPLITS = ("train", "validation", "test", "references")
"""Disjoint sets of conversation keys, see `split_of`: to train, to choose agents and settings, to score, to measure the
ends of the scale that scores are on."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11, _S48 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11), np.uint64(48)
_UNIT = 2.0**-53
_CLASSES = np.uint64(PURPOSES - 1)  # the bits that name a class
_UNDO_M1, _UNDO_M2 = (np.uint64(pow(int(each), -1, 2**64)) for each in (_M1, _M2))


# The types are stated: numba would else compile a function anew for each constant that it is called with.
@nb.njit("uint64(uint64)", cache=True)
def _mix(z: np.uint64) -> np.uint64:
    """Return SplitMix64's finaliser of z, a bijection on uint64."""
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@nb.njit("uint64(uint64, int64, int64)", cache=True)
def bits(key: np.uint64, turn: int, purpose: int) -> np.uint64:
    """Draw 64 random bits, uint64, for (key, turn, purpose)."""
    counter = np.uint64(turn) * np.uint64(PURPOSES) + np.uint64(purpose) + np.uint64(1)
    return _mix(_mix(np.uint64(key)) + counter * _GOLDEN)


@nb.njit("float64(uint64, int64, int64)", cache=True)
def draw(key: np.uint64, turn: int, purpose: int) -> float:
    """Draw a float64, uniform on [0, 1), for (key, turn, purpose)."""
    return np.float64(bits(key, turn, purpose) >> _S11) * _UNIT


@nb.njit("int64(uint64, int64, int64, int64)", cache=True)
def randint(key: np.uint64, turn: int, purpose: int, n: int) -> int:
    """Draw an int64, uniform on 0 … n - 1, for (key, turn, purpose); n < 2**32 keeps the bias below 2**-21."""
    return int(draw(key, turn, purpose) * n)


@nb.njit("uint64(uint64, int64, int64)", cache=True)
def public_seed(key: np.uint64, turn: int, purpose: int) -> np.uint64:
    """Draw a seed that an agent may see, uint64 below 2**16, for (key, turn, purpose) and (key, turn, purpose + 1).

    `bits` is a bijection of the key for a fixed turn and purpose, so 64 bits of it give the key away, and some of them
    by trying the others. Here 2**48 keys have the same seed, and nothing shorter than trying all keys finds them.
    """
    return (bits(key, turn, purpose) ^ bits(key, turn, purpose + 1)) >> _S48


@nb.njit("uint64(uint64, int64)", cache=True)
def episode_key(root: np.uint64, episode: int) -> np.uint64:
    """Return the key, uint64, of a row's `episode`-th conversation since it was seeded with `root`."""
    return bits(root, episode, PURPOSES - 1)


def split_of(keys: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """Return the split, one of `SPLITS`, that each conversation's key belongs to: str[...] for uint64[...].

    Before its last mixing, a key has 12 low bits in common with all keys of its row: `episode_key` adds multiples of
    `PURPOSES`, 2**12, to the mixed root. These bits are the key's class. Class 1 is validation, 2 test, 3 references;
    the other 4,093 are for training.
    """
    return np.array(SPLITS)[_split_number(_unmix(keys))]


def in_split(roots: npt.ArrayLike, split: str) -> npt.NDArray[np.uint64]:
    """Return roots, uint64[...], of which all keys (`episode_key`) belong to a split, one of `SPLITS`.

    They are made from other roots; a root of which all keys belong to the split already stays as it is.
    """
    number = SPLITS.index(split)
    with np.errstate(over="ignore"):
        places = np.asarray(_mix.py_func(np.asarray(roots, np.uint64)))
    moved = (places & ~_CLASSES) | np.uint64(number)
    return _unmix(np.where(_split_number(places) == number, places, moved))


def _split_number(places: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the numbers of splits, int64[...], that keys before their last mixing, uint64[...], belong to."""
    classes = (places & _CLASSES).astype(np.int64)
    return np.where(classes < len(SPLITS), classes, 0)


def _unmix(mixed: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return what `_mix` made into `mixed`, uint64[...]."""
    z = np.asarray(mixed, np.uint64)
    with np.errstate(over="ignore"):
        z = (z ^ (z >> _S31) ^ (z >> (_S31 + _S31))) * _UNDO_M2
        z = (z ^ (z >> _S27) ^ (z >> (_S27 + _S27))) * _UNDO_M1
        return np.asarray(z ^ (z >> _S30) ^ (z >> (_S30 + _S30)))


def hashed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return numbers that stand for keys, uint64[B] for uint64[B], and don't lead back to them: 64 bits of BLAKE2."""
    digests = (hashlib.blake2b(key.tobytes(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(each, "little") for each in digests], np.uint64)


def uniform(keys: npt.ArrayLike, turns: npt.ArrayLike, purposes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Draw as `draw` does, for arrays that broadcast together.

    Args:
        keys: uint64[...], conversation keys.
        turns: int[...], turn numbers, 0 or more.
        purposes: int[...], 0 … `PURPOSES` - 1.

    Returns:
        float64[...], uniform on [0, 1).
    """
    counter = np.asarray(turns, np.uint64) * np.uint64(PURPOSES) + np.asarray(purposes, np.uint64)
    with np.errstate(over="ignore"):
        z = _mix.py_func(np.asarray(keys, np.uint64))
        z = _mix.py_func(z + (counter + np.uint64(1)) * _GOLDEN)
    return (z >> _S11).astype(np.float64) * _UNIT
