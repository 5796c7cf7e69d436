"""What linear networks with batch norm converge to under each order of the data, without training any.

Notation of Wu, Yun and Sra (2023): a network ``M BN(x)``, ``n`` samples, batches of ``B``. Samples are rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["separable", "partly separable", "inseparable"]

_ALL_SUBSETS = 20_000  # up to so many batches are enumerated, beyond they are drawn
_DRAWN_PARTITIONS = 20_000
_TOLERANCE = 1e-7


def normalised(x: Tensor, eps: float = 0.0) -> Tensor:
    """Batches ``(..., B, features)``, each with its own mean and biased variance; 0 where all are equal."""
    centred = x - x.mean(-2, keepdim=True)
    variance = centred.square().mean(-2, keepdim=True) + eps
    return centred / torch.where(variance > 0, variance, 1.0).sqrt()


def distorted(x: Tensor, order: Tensor, batch_size: int, eps: float = 0.0) -> Tensor:
    """The data set that single shuffle trains on: ``(n, features)``, in that order, batch by batch."""
    return normalised(x[order].unflatten(0, (-1, batch_size)), eps).flatten(0, 1)


def full_batch_optimum(x: Tensor, y: Tensor) -> Tensor:
    """``M`` of least squares with statistics of all data: ``(outputs, features)``."""
    return torch.linalg.lstsq(normalised(x), y, driver="gelsd").solution.T


def single_shuffle_optimum(x: Tensor, y: Tensor, order: Tensor, batch_size: int) -> Tensor:
    """``M`` of least squares on the distorted set of one order; of least norm where it is not unique."""
    return torch.linalg.lstsq(distorted(x, order, batch_size), y[order], driver="gelsd").solution.T


def reshuffle_optimum(x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """``M`` of least squares on the distorted sets of all orders together.

    Every subset of ``B`` samples is equally often a batch, so that a sum over subsets gives what a sum over
    permutations would. They are enumerated where they are few, else drawn.
    """
    samples = len(x)
    if math.comb(samples, batch_size) <= _ALL_SUBSETS:
        parts = [torch.tensor(list(itertools.combinations(range(samples), batch_size)))]
    else:
        parts = (
            torch.rand(100, samples, generator=generator).argsort(1).view(-1, batch_size)
            for _ in range(_DRAWN_PARTITIONS // 100)
        )
    outer, inner = x.new_zeros(y.shape[1], x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
    for batches in parts:
        z = normalised(x[batches]).flatten(0, 1)
        outer += y[batches].flatten(0, 1).T @ z
        inner += z.T @ z
    return torch.linalg.solve(inner, outer, left=False)


@dataclass(frozen=True, slots=True)
class Separation:
    """How far two classes can be told apart by a direction.

    Attributes:
        kind: ``"separable"``: some direction has all points on its side; ``"partly separable"``: none does,
            but some has none on the wrong side and one at least off the border; ``"inseparable"``: else, and
            then the logistic loss has a minimum.
        direction: Where gradient descent on the logistic loss grows without end: the direction of largest
            margin on the points that can be separated, among those that leave the others on the border;
            zero where there is none.
    """

    kind: Kind
    direction: Tensor


def separation(points: Tensor) -> Separation:
    """Decides separability of signed points ``y_i x_i``, by linear programs.

    The points that some direction separates while none is on its wrong side come from one program; the
    direction of largest margin on them, orthogonal to the others, from a non-negative least squares problem
    (its dual).
    """
    import numpy as np
    from scipy.optimize import linprog, nnls

    z = points.double().numpy()
    samples, features = z.shape
    z = z / np.abs(z).max(1, keepdims=True).clip(min=_TOLERANCE)
    # Largest sum of t with t_i <= z_i v and 0 <= t_i <= 1: t_i is 1 for those that can be separated, else 0.
    found = linprog(
        np.concatenate([np.zeros(features), -np.ones(samples)]),
        A_ub=np.concatenate([-z, np.eye(samples)], 1),
        b_ub=np.zeros(samples),
        bounds=[(None, None)] * features + [(0, 1)] * samples,
        method="highs",
    )
    apart = found.x[features:] > 0.5
    if not apart.any():
        return Separation("inseparable", torch.zeros(features, dtype=torch.float64))
    rest = z[~apart]
    basis = np.eye(features)
    if len(rest):
        _, singular, right = np.linalg.svd(rest)
        rank = int((singular > _TOLERANCE * max(singular.max(), 1)).sum())
        basis = right[rank:].T
    inside = z[apart] @ basis
    # Least |v| with inside v >= 1: with a >= 0 nearest to inside^T a = 0, 1^T a = 1, v ~ inside^T a.
    system = np.concatenate([inside.T, np.ones((1, len(inside)))])
    share, _ = nnls(system, np.concatenate([np.zeros(inside.shape[1]), [1.0]]), maxiter=100 * samples)
    direction = basis @ (inside.T @ share)
    kind: Kind = "separable" if apart.all() else "partly separable"
    return Separation(kind, torch.from_numpy(direction / np.linalg.norm(direction)))
