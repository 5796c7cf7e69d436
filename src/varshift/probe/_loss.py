"""What is compared between states: the user's loss, the model's own, or a sensible default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varshift._errors import DataError, ModelError, VarshiftError
from varshift.model import Call, describe, message_of, primary_output

Loss = Callable[[Any, Any], Any]


def batch_loss(outputs: Any, call: Call, loss: Loss | None) -> float | None:
    """Mean loss over one batch as a number, None when there is nothing to compare with; see `loss_of`."""
    value = loss_of(outputs, call, loss)
    return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)


def loss_of(outputs: Any, call: Call, loss: Loss | None) -> Any:
    """Mean loss over one batch, to train with; None when there is nothing to compare with.

    The user's function is called as ``loss(outputs, targets)`` with the outputs as the model returned them
    (and the whole batch in place of targets that were not found, or where the batch is an object). Without
    one: the model's own ``.loss``, or its first output where that is a single number without dimensions;
    cross-entropy for class indices; binary cross-entropy for 0/1 integers of the same shape as the outputs;
    mean squared error for float targets.

    Raises:
        DataError: If targets and outputs do not fit together.
        ModelError: If the user's loss fails, from its own error, or does not return one number.
    """
    if loss is not None:
        value = _own_loss(loss, outputs, call)
        number = _number(value.detach() if isinstance(value, Tensor) else value)
        if number is None:
            raise ModelError(
                f"loss= returned {describe(value)}: expected one number. "
                "Average over the batch inside the function."
            )
        return value
    own = getattr(outputs, "loss", None)
    if own is None and isinstance(outputs, dict):
        own = outputs.get("loss")
    if isinstance(own, Tensor) and own.numel() == 1:
        return own
    output = primary_output(outputs)
    if output is None or not output.is_floating_point():
        return None
    if output.dim() == 0:
        return output
    target = call.targets
    if not isinstance(target, Tensor):
        return None
    return _default_loss(output.float() if output.dtype != torch.float64 else output, target)


def _own_loss(loss: Loss, outputs: Any, call: Call) -> Any:
    try:
        return loss(outputs, call.compared)
    except VarshiftError:
        raise
    except Exception as error:
        second = "targets" if call.compared is call.targets else "the batch"
        raise ModelError(
            f"loss= failed on outputs ({describe(outputs)}) and {second} ({describe(call.compared)}): "
            f"{message_of(error)}"
        ) from error


def check_classes(outputs: Any, target: Any) -> None:
    """Makes sure that targets which are class indices are classes of the model.

    Raises:
        DataError: If one is not.
    """
    output = primary_output(outputs)
    if output is None or output.dim() < 2 or not isinstance(target, Tensor) or target.is_floating_point():
        return
    if output.shape[2:] != target.shape[1:] or output.shape[1] < 2:
        return
    classes, valid = output.shape[1], target[target != -100]
    if valid.numel() and (int(valid.min()) < 0 or int(valid.max()) >= classes):
        raise DataError(
            f"targets run from {int(valid.min())} to {int(valid.max())}, but the model has {classes} outputs:"
            " pass a model and data that belong together, or loss= for another convention."
        )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # no number, or more than one
        return None


def _default_loss(output: Tensor, target: Tensor) -> Tensor:
    target = target.to(output.device)
    if target.is_floating_point():
        if output.shape != target.shape and output.numel() == target.numel():
            target = target.reshape(output.shape)
        if output.shape != target.shape:
            raise DataError(_mismatch(output, target))
        return F.mse_loss(output, target.to(output.dtype))
    if output.shape == target.shape or (output.numel() == target.numel() and output.shape[-1:] == (1,)):
        if target.numel() and not bool(((target == 0) | (target == 1)).all()):
            raise DataError(_mismatch(output, target))
        return F.binary_cross_entropy_with_logits(output, target.reshape(output.shape).to(output.dtype))
    if output.dim() < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise DataError(_mismatch(output, target))
    check_classes(output, target)
    return F.cross_entropy(output, target.long())


def correct(outputs: Any, target: Any) -> tuple[int, int] | None:
    """Number of right answers and of answers, where targets are class indices; None otherwise."""
    output = primary_output(outputs)
    if output is None or not isinstance(target, Tensor) or target.is_floating_point() or output.dim() < 2:
        return None
    if output.shape[:1] + output.shape[2:] != target.shape or output.shape[1] < 2:
        return None
    target = target.to(output.device)
    counted = target != -100
    return int(((output.argmax(1) == target) & counted).sum()), int(counted.sum())


def relative_l2(output: Tensor, reference: Tensor) -> float:
    """Distance of two outputs relative to the norm of the second."""
    difference = torch.linalg.vector_norm((output - reference).double())
    return float(difference / torch.linalg.vector_norm(reference.double()).clamp_min(1e-300))


def mean_kl(output: Tensor, reference: Tensor) -> float | None:
    """Mean Kullback-Leibler divergence ``KL(reference || output)`` of the class posteriors in nats."""
    if output.dim() < 2 or output.shape[1] < 2 or output.shape != reference.shape:
        return None
    log_p, log_q = F.log_softmax(reference.double(), 1), F.log_softmax(output.double(), 1)
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def _mismatch(output: Tensor, target: Tensor) -> str:
    remedy = ""
    if not target.is_floating_point() and output.numel() == target.numel():
        remedy = " For a regression convert the targets to floats."
    elif target.is_floating_point() and output.shape[:1] + output.shape[2:] == target.shape:
        remedy = " For a classification convert the targets to whole numbers, as in y.long()."
    return (
        f"outputs of shape {tuple(output.shape)} and {str(target.dtype).removeprefix('torch.')} targets of "
        f"shape {tuple(target.shape)} fit no default loss. Pass loss= (a function of outputs and targets)."
        f"{remedy}"
    )
