"""The mark of statistics that were re-estimated without noise: in the last bits of the variances themselves.

A mark has to go wherever the statistics go (copies, state dicts, files of any format, other processes), must
not add a key that a strict ``load_state_dict`` refuses, and must vanish as soon as training moves the
statistics. So it is no attribute and no buffer: the last bit of each running variance is set to a digest of
mean and variance without it (the last two or three bits where a norm has fewer than sixteen channels). That
is a rounding error, at most a millionth of the variance; and whatever writes other values breaks the digest.
Means are not touched: where they are large, their last bit is a part of the standard deviation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from varshift.model._norms import Norm

Origin = Literal["measured", "predicted"]
ORIGINS: tuple[Origin, ...] = ("measured", "predicted")

_WORDS = {torch.float32: "<i4", torch.float64: "<i8"}  # a bit of half precision would be felt
# What varies with the mean has no bit to spare either.
_FORMS = ("variance", "deviation", "inverse_deviation", "log_variance")
_BITS = 16  # of one norm with enough channels
_WIDEST = 3  # bits of one variance
_ENOUGH = 12  # bits of one norm that are no chance: one norm in two thousand has them without a mark


def marked(origin: Origin, norm: Norm, mean: Tensor, spread: Tensor) -> Tensor:
    """The second statistic of a norm with a mark; as it is where it has no bit to spare.

    Args:
        origin: Where the statistics come from: ``"measured"`` on data or ``"predicted"``, both without noise.
        norm: The norm.
        mean: Its mean as it will be stored.
        spread: Its variance, in the form and type in which it will be stored.
    """
    words = _words(norm, spread)
    if words is None:
        return spread
    pattern, width = _pattern(origin, mean, words)
    carries = _carries(words, width)
    bits = np.where(carries, _without(words, width) | pattern, words).astype(words.dtype)
    numbers = torch.from_numpy(bits.view(f"<f{words.itemsize}").copy())
    return numbers.reshape(spread.shape).to(spread.device, spread.dtype)


def origins(norms: Iterable[Norm]) -> dict[str, Origin]:
    """The norms whose statistics bear a mark, by name, with where the statistics come from.

    A norm of three channels or fewer bears too few bits to tell a mark from chance: it counts where a norm
    with more bears one, or where all norms together do.
    """
    readable = [norm for norm in norms if norm.readable and norm.states.unsupported is None]
    found: dict[str, tuple[Origin, int]] = {}
    for norm in readable:
        words = _words(norm, norm.spread)
        if words is None:
            continue
        for origin in ORIGINS:
            pattern, width = _pattern(origin, norm.mean, words)
            carries = _carries(words, width)
            if carries.any() and bool((words - _without(words, width) == pattern)[carries].all()):
                found[norm.name] = origin, width * int(carries.sum())
    sure = any(count >= _ENOUGH for _, count in found.values())
    together = len(found) == len(readable) and sum(count for _, count in found.values()) >= _ENOUGH
    return {name: origin for name, (origin, _) in found.items()} if sure or together else {}


def _words(norm: Norm, spread: Tensor) -> np.ndarray | None:
    """The bits of a second statistic as whole numbers, None where it has none to spare.

    Of several rows of statistics some may stay as they are, to the last bit.
    """
    fits = norm.spread_state is not None and norm.states.form in _FORMS and norm.rows == 1
    if not fits or spread.dtype not in _WORDS or not spread.numel():
        return None
    return _flat(spread).view(_WORDS[spread.dtype])


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().cpu().contiguous().reshape(-1).numpy()


def _without(words: np.ndarray, width: int) -> np.ndarray:
    """Words with their last bits set to zero."""
    return (words >> width) << width


def _carries(words: np.ndarray, width: int) -> np.ndarray:
    """Which values bear bits of the mark: not zeros, which would turn into other values."""
    return (_without(words, width) & np.iinfo(words.dtype).max) != 0


def _pattern(origin: Origin, mean: Tensor, words: np.ndarray) -> tuple[np.ndarray, int]:
    """What the last bits of the variances have to be, and how many of each."""
    width = min(_WIDEST, -(-_BITS // words.size))
    digest = hashlib.shake_128(f"varshift {origin}".encode())
    digest.update(_flat(mean.to(torch.float64)).astype("<f8").tobytes())
    digest.update(_without(words, width).tobytes())
    drawn = np.frombuffer(digest.digest(words.size), dtype=np.uint8)
    return (drawn & ((1 << width) - 1)).astype(words.dtype), width
