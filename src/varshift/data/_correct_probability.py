"""The probability that a model gave to the right answer."""

from __future__ import annotations

import torch
from torch import Tensor


def correct_probability(outputs: Tensor, targets: Tensor, *, logits: bool = True) -> Tensor:
    r"""The probability :math:`p(y_i | x_i)` that the model gives to each sample's correct class.

    For class numbers, the softmax over the classes at the target; for targets in [0, 1] of the outputs' own
    shape (binary or multi-label problems), :math:`y p + (1 - y)(1 - p)` elementwise, with
    :math:`p` the sigmoid. The paper defines classification with one correct class; the binary and multi-label
    forms are extensions, and there is none for regression. Computed in float32 or wider, without gradient.

    Shape:
        outputs (B, C) with whole-number targets (B,) gives (B,); outputs and targets of the same shape (B,)
        or (B, C) give that shape.

    Args:
        outputs: Logits, or probabilities with `logits=False`.
        targets: Class numbers, or labels in [0, 1].
        logits: Whether the outputs are logits.

    Raises:
        ValueError: If the shapes fit neither form or a target is not a class.

    Example:
        >>> import torch
        >>> from varshift.data import correct_probability
        >>> correct_probability(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 1]))
        tensor([0.5000, 0.5000])
    """
    outputs, targets = outputs.detach(), targets.detach().to(outputs.device)
    if outputs.dtype not in (torch.float32, torch.float64):
        outputs = outputs.float()
    if outputs.dim() == 2 and targets.dim() == 1 and len(outputs) == len(targets):
        return _of_classes(outputs, targets, logits)
    if outputs.shape != targets.shape or outputs.dim() not in (1, 2):
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}: pass (B, C) with "
            "class numbers (B,), or both of the shape (B,) or (B, C) with labels in [0, 1]. Of several "
            "predictions per sample, give each an id of its own."
        )
    labels = targets.to(outputs.dtype)
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise ValueError("targets of the outputs' shape must be labels in [0, 1].")
    probability = outputs.sigmoid() if logits else outputs
    return labels * probability + (1 - labels) * (1 - probability)


def _of_classes(outputs: Tensor, targets: Tensor, logits: bool) -> Tensor:
    if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
        raise ValueError(f"targets of shape (B,) have type {targets.dtype}: they must be class numbers.")
    targets = targets.long()
    wrong = (targets < 0) | (targets >= outputs.shape[1])
    if bool(wrong.any()):
        raise ValueError(
            f"targets hold {int(targets[wrong][0])}, which is not one of {outputs.shape[1]} classes: "
            "leave such samples out, of the ids too."
        )
    probability = outputs.softmax(1) if logits else outputs
    return probability.gather(1, targets[:, None])[:, 0]
