"""The kernel of batch norm preconditioning: gradients of a layer as if its input were normalised."""

from __future__ import annotations

import torch
from torch import Tensor


def precondition_gradients(
    weight_grad: Tensor | None,
    bias_grad: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    q2: Tensor | float = 1.0,
    *,
    groups: int = 1,
) -> tuple[Tensor | None, Tensor | None]:
    r"""Multiplies a layer's gradients by :math:`P P^\top`, as if its input were centred and scaled.

    .. math:: g'_{W,ij} = \frac{g_{W,ij} - \mu_j\, g_{b,i}}{q^2 \tilde\sigma^2_j}, \qquad
        g'_{b,i} = \frac{g_{b,i}}{q^2} - \sum_j \mu_j\, g'_{W,ij}

    A convolution's channel :math:`j` has one mean and one variance for all its offsets. Without a bias
    there is nothing to centre with: :math:`g'_W = g_W / (q^2 \tilde\sigma^2)`. Without a weight only
    :math:`q^2` is left.

    Args:
        weight_grad: Of shape (outputs, inputs of a group, ...); None where the weight is not trained.
        bias_grad: Of shape (outputs,); None where there is none or it is not trained.
        mean: :math:`\mu`, of shape (inputs,), those of all groups.
        variance: :math:`\tilde\sigma^2`, with its floor, of shape (inputs,).
        q2: :math:`q^2`.
        groups: Groups of the convolution.

    Returns:
        The two new gradients.

    References:
        arXiv 2108.01110, boxes 2 and 3, derived anew: the paper's text was not available.

    Example:
        >>> weight_grad, bias_grad = torch.tensor([[2.0, 6.0]]), torch.tensor([1.0])
        >>> mean, variance = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
        >>> precondition_gradients(weight_grad, bias_grad, mean, variance)
        (tensor([[1., 1.]]), tensor([-2.]))
    """
    weight_grad = None if weight_grad is None else weight_grad.clone()
    bias_grad = None if bias_grad is None else bias_grad.clone()
    precondition_(weight_grad, bias_grad, mean, variance, q2, groups)
    return weight_grad, bias_grad


def precondition_(
    weight_grad: Tensor | None,
    bias_grad: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    q2: Tensor | float,
    groups: int,
) -> None:
    """Does in place what `precondition_gradients` describes."""
    given = [grad for grad in (weight_grad, bias_grad) if grad is not None]
    if any(grad.dtype in (torch.float16, torch.bfloat16) for grad in given):
        wide_weight, wide_bias = (None if grad is None else grad.float() for grad in (weight_grad, bias_grad))
        precondition_(wide_weight, wide_bias, mean, variance, q2, groups)
        for grad, result in ((weight_grad, wide_weight), (bias_grad, wide_bias)):
            if grad is not None and result is not None:
                grad.copy_(result)
        return
    if bias_grad is not None:
        bias_grad.div_(q2)
    if weight_grad is None or weight_grad.numel() == 0:
        return
    # (groups, outputs of a group, inputs, ...), with inputs and offsets in one axis where memory allows it:
    # long rows run through vector instructions, nine offsets at a time do not.
    grad = weight_grad.unflatten(0, (groups, -1))
    rows = grad.flatten(2) if weight_grad.is_contiguous() else grad
    scale = _across(1 / (variance * q2), grad, rows)
    if bias_grad is None:
        rows.mul_(scale)
        return
    means = _across(mean, grad, rows)
    gb = bias_grad * q2
    rows.addcmul_(gb.view(groups, -1, *[1] * (rows.dim() - 2)), means, value=-1).mul_(scale)
    if rows.dim() == 3:
        bias_grad.sub_(torch.bmm(rows, means.transpose(1, 2)).flatten())
    else:
        bias_grad.sub_((rows * means).flatten(2).sum(2).flatten())


def _across(values: Tensor, grad: Tensor, rows: Tensor) -> Tensor:
    """A value per input, in a shape that broadcasts against the rows."""
    groups, inputs, offsets = grad.shape[0], grad.shape[2], grad.shape[3:]
    values = values.to(grad.dtype).view(groups, 1, inputs, *[1] * len(offsets))
    return values if rows is grad else values.expand(-1, -1, -1, *offsets).reshape(groups, 1, -1)
