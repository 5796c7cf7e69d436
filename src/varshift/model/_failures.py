"""A model's own error as one sentence: where it was raised, on what, and what is likely to help."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import ModelError, VarshiftError
from varshift.model._nest import tensors

_SHOWN = 6  # shapes; a batch of lists has one per sample
_ABOUT_TYPES = ("dtype", "scalar type", "same type", "input type", "not implemented for")
_WANTS_TARGETS = ("target", "label", "gt_", "ground truth")


def model_failure(
    error: Exception,
    model: nn.Module,
    inputs: Any,
    *,
    names: Mapping[str, str] | None = None,
    by_user: bool = False,
) -> VarshiftError:
    """The error to raise, `from` the original, when a model or a ``forward=`` failed on a batch.

    An error of this package is returned as it is.

    Args:
        error: What was raised.
        model: The model that ran.
        inputs: What it ran on.
        names: Canonical names of its modules by path, where aliases may occur.
        by_user: Whether a ``forward=`` of the user's ran it.
    """
    if isinstance(error, VarshiftError):
        return error
    where = place_of(error, model, names or {})
    place = f", in {where}" if where else ""
    subject = (
        "forward= failed on the batch"
        if by_user and not where
        else "the model cannot be run on the batch given"
    )
    text = f"{subject} ({shapes_of(inputs)}{place}): {message_of(error)}"
    remedy = _remedy(error, model, inputs, by_user=by_user)
    return ModelError(f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {remedy}" if remedy else text)


def place_of(error: BaseException, model: nn.Module, names: Mapping[str, str] | None = None) -> str:
    """The innermost of a model's modules that was at work when an error was raised, as ``'path' (Class)``."""
    paths = {id(module): (names or {}).get(path, path) for path, module in model.named_modules()}
    place = ""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and paths.get(id(owner)):
            place = f"'{paths[id(owner)]}' ({type(owner).__name__})"
        trace = trace.tb_next
    return place


def shapes_of(batch: Any) -> str:
    """The shapes of the tensors of a batch, in words."""
    shapes = [
        str(tuple(tensor.shape)) for tensor in islice(tensors(batch), _SHOWN + 1) if not tensor.is_nested
    ]
    if not shapes:
        return f"a {type(batch).__name__} without tensors"
    return "input shapes " + ", ".join(shapes[:_SHOWN]) + (", ..." if len(shapes) > _SHOWN else "")


def message_of(error: BaseException) -> str:
    """Type and text of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def short_message_of(error: BaseException) -> str:
    """Type of an error and the first line of it that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    line = next((line for line in lines if line), "")
    line = line if len(line) <= 200 else line[:197] + "..."
    return f"{type(error).__name__}: {line}".rstrip(". :") if line else type(error).__name__


def describe(value: Any) -> str:
    """What a value is, for messages: a tensor by its shape, everything else by its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _remedy(error: Exception, model: nn.Module, inputs: Any, *, by_user: bool) -> str:
    """What is likely to help; empty where the error has to speak for itself."""
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    text = str(error).lower()
    odd = [tensor for tensor in tensors(inputs) if tensor.dim() > 1 and tensor.dtype != weights]
    # Whole numbers next to floats may well be meant to be whole numbers.
    images = next((tensor for tensor in odd if tensor.is_floating_point()), next(iter(odd), None))
    about_types = any(word in text for word in _ABOUT_TYPES)
    if weights is not None and images is not None and about_types:
        kind, wanted = (str(dtype).removeprefix("torch.") for dtype in (images.dtype, weights))
        if images.is_floating_point():
            return f"Inputs are {kind} and the weights {wanted}: convert the data with .to(torch.{wanted})."
        if images.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
            return (
                f"Inputs are {kind} and the weights {wanted}: convert the data with .to(torch.{wanted}), "
                "and scale images as in training (/ 255)."
            )
    if any(word in text for word in _WANTS_TARGETS):
        return (
            "It seems to want targets: pass forward=, as in lambda model, batch: model(*batch), "
            "and loss= for the loss that it returns."
        )
    if by_user:
        return ""
    if isinstance(error, TypeError) and "argument" in text:
        return "Pass forward= (a function of model and batch) that calls the model with its inputs."
    return ""
