"""The kernel of adaptive gradient clipping: norms of units, their caps, and the scaling of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from varshift._arguments import non_negative, positive

_LEAST_NORM = 1e-6  # the divisor is never below this, as in the published code
_HALF = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class _Piece:
    """A weight with its gradient, as plain dense tensors whose units are the entries along one axis."""

    weight: Tensor
    grad: Tensor
    axes: tuple[int, ...] | None  # those of a unit; None where the tensor is one unit
    spread: Tensor | None = None  # a whole tensor that is shared out among processes


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    *,
    per_channel: bool = False,
    grad_scale: Tensor | None = None,
) -> Tensor:
    r"""Clips gradients in place, unit by unit, where they are large beside the weights they change.

    .. math:: G_i \leftarrow \lambda \frac{\max(\|W_i\|, \epsilon)}{\max(\|G_i\|, 10^{-6})} G_i
        \quad\text{where}\quad \|G_i\| > \lambda \max(\|W_i\|, \epsilon)

    A unit :math:`i` is a slice along axis 0 of a tensor of two or more axes (a filter, a row of a linear
    layer), and the whole tensor otherwise. `AdaptiveGradientClipping` has the reference and the limits.

    Args:
        parameters: Parameters whose ``.grad`` is clipped; those without one are passed over.
        clip_factor: :math:`\lambda`, the largest allowed ratio of a unit's gradient to its weight.
        eps: :math:`\epsilon`, so that units that start at zero can move.
        per_channel: Whether tensors of shape (1, C, 1, ...) are clipped channel by channel and not as one
            unit.
        grad_scale: A factor that the gradients carry and that is taken out later; the caps are raised by it.

    Returns:
        How many units were clipped, as a tensor, so that an accelerator need not be waited for.

    Raises:
        ValueError: If a number is out of its range, or a gradient is sparse in a way that has no units.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.6, 0.8]]))
        >>> weight.grad = torch.tensor([[0.3, 0.4], [0.3, 0.4]])
        >>> adaptive_clip_grad_([weight], clip_factor=0.1)
        tensor(1)
        >>> weight.grad
        tensor([[0.3000, 0.4000],
                [0.0600, 0.0800]])
    """
    clip_factor, eps = positive("clip_factor", clip_factor), non_negative("eps", eps)
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    places: dict[torch.device, list[_Piece]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            piece = _piece(parameter, parameter.grad, per_channel)
            places.setdefault(piece.grad.device, []).append(piece)
    counts = [_clip(pieces, clip_factor, eps, grad_scale) for pieces in places.values()]
    if not counts:
        return torch.zeros((), dtype=torch.int64)
    return torch.stack([count.to(counts[0].device) for count in counts]).sum() if counts[1:] else counts[0]


def _clip(pieces: list[_Piece], clip_factor: float, eps: float, grad_scale: Tensor | None) -> Tensor:
    weights, sizes = _norms(pieces, [piece.weight for piece in pieces])
    grads, _ = _norms(pieces, [piece.grad for piece in pieces])
    caps = weights.clamp_(min=eps).mul_(clip_factor)
    least = torch.as_tensor(_LEAST_NORM, dtype=grads.dtype, device=grads.device)
    if grad_scale is not None:
        grad_scale = grad_scale.to(grads.device, grads.dtype)
        caps, least = caps * grad_scale, least * grad_scale
    clipped = grads > caps
    factors = torch.where(clipped, caps / grads.maximum(least), 1.0)
    count = clipped.sum()
    chosen = range(len(pieces))
    if grads.device.type == "cpu" and not torch.compiler.is_compiling():
        # Main memory is slow and reading a flag is free: gradients that stay as they are, are not touched.
        ends = torch.tensor(sizes).cumsum(0)
        chosen = torch.searchsorted(ends, clipped.nonzero().flatten(), right=True).unique().tolist()
    shares = factors.split(sizes)
    targets = [pieces[index].grad for index in chosen]
    if targets:
        pieces = [pieces[index] for index in chosen]
        scales = [_shaped(shares[index], piece) for index, piece in zip(chosen, pieces, strict=True)]
        torch._foreach_mul_(targets, scales)  # pyright: ignore[reportPrivateImportUsage]
    return count


def _norms(pieces: list[_Piece], tensors: list[Tensor]) -> tuple[Tensor, list[int]]:
    """The norms of all units of all pieces in one vector, and how many belong to each piece."""
    whole = [index for index, piece in enumerate(pieces) if piece.axes is None]
    norms: list[Tensor] = [_unit_norm(t, p) for t, p in zip(tensors, pieces, strict=True)]
    for kind in {tensors[index].dtype for index in whole if pieces[index].spread is None}:
        same = [i for i in whole if tensors[i].dtype == kind and pieces[i].spread is None]
        wide = torch.float32 if kind in _HALF else None
        found = torch._foreach_norm([tensors[i] for i in same], 2, wide)  # pyright: ignore[reportPrivateImportUsage]
        for index, norm in zip(same, found, strict=True):
            norms[index] = norm
    flat = [norm.reshape(-1) for norm in norms]
    return torch.cat(flat), [norm.numel() for norm in flat]


def _unit_norm(tensor: Tensor, piece: _Piece) -> Tensor:
    if piece.spread is not None:
        whole = piece.spread if tensor is piece.weight else piece.spread.grad
        return torch.linalg.vector_norm(whole).full_tensor()  # type: ignore[union-attr,arg-type]
    if piece.axes is None:
        return tensor  # replaced by one call for all
    wide = torch.float32 if tensor.dtype in _HALF else None
    return torch.linalg.vector_norm(tensor, dim=piece.axes, dtype=wide)


def _shaped(factors: Tensor, piece: _Piece) -> Tensor:
    if piece.axes is None:
        return factors.view(())
    return factors.view([1 if axis in piece.axes else size for axis, size in enumerate(piece.grad.shape)])


def _piece(parameter: Tensor, grad: Tensor, per_channel: bool) -> _Piece:
    weight = parameter.detach()
    if hasattr(weight, "device_mesh"):
        return _shared_out(parameter, grad)
    if grad.layout == torch.sparse_coo and grad.sparse_dim() == 1 and grad.dim() > 1:
        # Rows that do not occur have no gradient: nothing to clip.
        if not grad.is_coalesced():
            parameter.grad = grad = grad.coalesce()
        values = grad._values()
        return _Piece(weight[grad._indices()[0]], values, tuple(range(1, values.dim())))
    if grad.layout != torch.strided:
        raise ValueError(
            f"a gradient of shape {tuple(grad.shape)} has the layout {grad.layout}: its units cannot be told "
            "apart. Exclude the parameter, or make its gradient dense."
        )
    if per_channel and weight.dim() > 2 and weight.shape[0] == 1 and weight.numel() == weight.shape[1]:
        return _Piece(weight, grad, (0, *range(2, weight.dim())))
    return _Piece(weight, grad, tuple(range(1, weight.dim())) if weight.dim() > 1 else None)


def _shared_out(parameter: Tensor, grad: Tensor) -> _Piece:
    """A piece of a parameter whose rows are shared out among processes (a DTensor)."""
    by_rows = all(
        placement.is_replicate() or placement.is_shard(0)
        for placement in parameter.placements  # type: ignore[attr-defined]
    )
    if not by_rows or grad.placements != parameter.placements:  # type: ignore[attr-defined]
        raise ValueError(
            f"a parameter is spread as {parameter.placements} and its gradient as "  # type: ignore[attr-defined]
            f"{getattr(grad, 'placements', None)}: both must be sharded along axis 0 alone, else a "
            "unit is in several places. Exclude the parameter, or shard it by rows."
        )
    weight, local = parameter.detach().to_local(), grad.to_local()  # type: ignore[attr-defined]
    if parameter.dim() > 1:
        return _Piece(weight, local, tuple(range(1, parameter.dim())))
    return _Piece(weight, local, None, spread=parameter)
