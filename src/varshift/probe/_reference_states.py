"""State of a network other than running statistics that an average of networks does not keep.

A spectral norm keeps singular vectors: the average of unit vectors is shorter than one, and its direction may
be that of none. An observer of quantisation keeps the range of a signal: the average of ranges is narrower
than the range of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

StateKind = Literal["spectral", "range"]
_ITERATIONS = 30
_SAME = 1e-4


@dataclass(frozen=True, slots=True)
class StateComparison:
    """State of one module against that of its counterparts in the references.

    Attributes:
        name: Path of the module.
        kind: ``"spectral"`` for the singular vectors of a spectral norm, ``"range"`` for that of an observer.
        ratio: Of a spectral norm the largest singular value of its weight over the one that it divides by; of
            a range that is the average of those of the references, the range of all of them over it.
        reference_ratio: The same of the reference where it is largest; 1 for a range.
    """

    name: str
    kind: StateKind
    ratio: float
    reference_ratio: float = 1.0


def compare_states(
    network: nn.Module,
    references: Sequence[nn.Module],
    pairs: Sequence[Mapping[str, str]],
    shares: Sequence[float],
) -> tuple[StateComparison, ...]:
    """Compares what belongs to the weights; nothing is run and nothing is written.

    Args:
        network: The network.
        references: The others.
        pairs: Of each reference, the modules that correspond.
        shares: Weights of the references in the network's weights.
    """
    found = []
    others = [_singular_values(reference) for reference in references]
    for name, ratio in _singular_values(network).items():
        theirs = [
            other[paths[name]] for paths, other in zip(pairs, others, strict=True) if paths.get(name) in other
        ]
        if theirs:
            found.append(StateComparison(name, "spectral", ratio, max(theirs)))
    if len(references) > 1 and len(shares) == len(references):
        found += _ranges(network, references, pairs, shares)
    return tuple(found)


def _singular_values(network: nn.Module) -> dict[str, float]:
    """Of each module with a spectral norm, the largest singular value over what its weight is divided by."""
    return {
        name: _largest(matrix, v) / max(abs(float(u @ (matrix @ v))), 1e-30)
        for name, matrix, u, v in _spectral_norms(network)
    }


def _spectral_norms(network: nn.Module) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    modules = dict(network.named_modules())
    for path, module in modules.items():
        u, v = getattr(module, "_u", None), getattr(module, "_v", None)
        reshape: Any = getattr(module, "_reshape_weight_to_matrix", None)
        owner = modules.get(path.rpartition(".")[0])
        original: Any = getattr(owner, "original", None)
        if isinstance(u, Tensor) and isinstance(v, Tensor) and callable(reshape) and original is not None:
            matrix: Any = reshape(original)
            yield from _plain(path.partition(".parametrizations.")[0], matrix, u, v)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                weight = getattr(module, f"{hook.name}_orig")
                matrix = hook.reshape_weight_to_matrix(weight)
                u, v = (getattr(module, f"{hook.name}_{letter}") for letter in "uv")
                yield from _plain(path, matrix, u, v)


def _plain(name: str, matrix: Tensor, u: Tensor, v: Tensor) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    if not matrix.is_meta:
        exact = [tensor.detach().to("cpu", torch.float64) for tensor in (matrix, u, v)]
        yield name, exact[0], exact[1], exact[2]


def _largest(matrix: Tensor, start: Tensor) -> float:
    """The largest singular value by power iteration, from below."""
    # Vectors that cancelled in an average may be near zero: the largest row keeps the start off it.
    row = matrix[int(matrix.square().sum(1).argmax())]
    vector = start / start.norm().clamp_min(1e-30) + row / row.norm().clamp_min(1e-30)
    for _ in range(_ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm().clamp_min(1e-30)
    return float((matrix @ vector).norm())


def _ranges(
    network: nn.Module,
    references: Sequence[nn.Module],
    pairs: Sequence[Mapping[str, str]],
    shares: Sequence[float],
) -> Iterator[StateComparison]:
    for name, module in network.named_modules():
        own = _range(module)
        theirs = [
            _range(reference.get_submodule(paths[name])) if name in paths else None
            for paths, reference in zip(pairs, references, strict=True)
        ]
        known = [one for one in theirs if one is not None and own is not None and one.shape == own.shape]
        if own is None or len(known) < len(references):
            continue
        several = torch.stack(known)
        mean = torch.einsum("n,n...->...", torch.tensor(shares, dtype=torch.float64), several)
        whole = torch.stack([several[:, 0].amin(0), several[:, 1].amax(0)])
        width = (whole[1] - whole[0]).clamp_min(1e-30)
        if bool(((own - mean).abs() <= 10 * _SAME * width).all()):
            yield StateComparison(name, "range", float((width / (own[1] - own[0]).clamp_min(1e-30)).max()))


def _range(module: nn.Module) -> Tensor | None:
    """Smallest and largest value that an observer of quantisation saw."""
    low, high = (module._buffers.get(name) for name in ("min_val", "max_val"))
    if low is None or high is None or low.is_meta or low.numel() == 0 or low.shape != high.shape:
        return None
    both = torch.stack([low.detach(), high.detach()]).to("cpu", torch.float64)
    return both if bool(torch.isfinite(both).all()) else None
