"""How a model is called with a batch, and what comes back: the conventions behind `forward=` and `loss=`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import DataError

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[..., Tensor]

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_OUTPUT_KEYS = ("logits", "out", "output", "outputs", "prediction", "predictions", "last_hidden_state")


def split_batch(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Splits a batch into positional inputs, keyword inputs and the target (None without one).

    A tensor is the input. Of a tuple or list, the first items are the inputs (as many as ``model.forward``
    requires, at least one; they may also stand in a tuple or mapping of their own) and the next one, if any,
    is the target. A mapping is passed by keyword when its keys are arguments of ``forward``; otherwise its
    only tensor that is not a target is the input, and failing that the mapping itself is.

    Raises:
        DataError: If the batch is empty or of another type.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if isinstance(batch, Mapping):
        return _split_mapping(model, batch)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        if len(batch) == 0:
            raise DataError("a batch is an empty tuple: expected inputs, or (inputs, targets).")
        return _split_sequence(model, batch)
    raise DataError(
        f"a batch is a {type(batch).__name__}: expected a tensor, (inputs, targets) or a mapping. "
        "Pass forward= (a function of model and batch) for other structures."
    )


def _split_sequence(model: nn.Module, batch: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    first, rest = batch[0], batch[1:]
    if isinstance(first, Mapping) and _accepts(model, first):
        return (), dict(first), rest[0] if rest else None
    if isinstance(first, (tuple, list)) and _required_inputs(model, len(first) + 1) == len(first) > 1:
        return tuple(first), {}, rest[0] if rest else None
    required = min(max(1, _required_inputs(model, len(batch))), len(batch))
    return tuple(batch[:required]), {}, batch[required] if len(batch) > required else None


def _split_mapping(model: nn.Module, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if len(batch) == 0:
        raise DataError("a batch is an empty mapping: expected the inputs by name.")
    target = next((batch[key] for key in _TARGET_KEYS if batch.get(key) is not None), None)
    accepted = _accepted(model, batch)
    inputs = {key: batch[key] for key in accepted if key not in _TARGET_KEYS}
    if inputs:
        return (), {key: batch[key] for key in accepted}, target
    tensors = [value for key, value in batch.items() if key not in _TARGET_KEYS and isinstance(value, Tensor)]
    if len(tensors) == 1:
        return (tensors[0],), {}, target
    return (dict(batch),), {}, target


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _required_inputs(model: nn.Module, available: int) -> int:
    parameters = _parameters(model)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return max(1, available - 1)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(1 for p in parameters if p.kind in positional and p.default is p.empty)


def _accepted(model: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    parameters = _parameters(model)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return [key for key in batch if isinstance(key, str)]
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [key for key in batch if key in named]


def _accepts(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    return len(_accepted(model, batch)) == len(batch)


def default_forward(model: nn.Module, batch: Any) -> Any:
    """Calls the model with a batch by the conventions of `split_batch`."""
    args, kwargs, _ = split_batch(model, batch)
    return model(*args, **kwargs)


def primary_output(outputs: Any) -> Tensor | None:
    """The tensor that stands for a model's outputs: itself, ``.logits``, or the first tensor inside."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, Mapping):
        named = [outputs[key] for key in _OUTPUT_KEYS if key in outputs]
        candidates: list[Any] = [*named, *outputs.values()]
    elif isinstance(outputs, (tuple, list)):
        candidates = list(outputs)
    else:
        return None
    return next((found for item in candidates if (found := primary_output(item)) is not None), None)


def move(value: Any, device: torch.device | str | None) -> Any:
    """Moves every tensor inside a batch to a device; other things stay as they are."""
    if device is None:
        return value
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to every tensor of a nested batch and keeps the structure."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(item, function) for key, item in value.items()}
        return mapped if type(value) is dict else _rebuild_mapping(value, mapped)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        mapped = copy.copy(value)
        for name, item in _fields(value).items():
            object.__setattr__(mapped, name, map_tensors(item, function))  # a frozen one, too
        return mapped
    return value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _rebuild_mapping(original: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    try:
        return type(original)(mapped)  # type: ignore[call-arg]
    except TypeError:
        return mapped


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors inside a nested batch, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors(_fields(value))


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor inside a nested batch."""
    return next(tensors(value), None)


def batch_size(batch: Any) -> int:
    """Number of samples in a batch: the length of its first tensor's first dimension.

    A batch of lists with one entry per sample, as detectors take them, has the length of its lists.
    """
    listed = samples_in_lists(batch)
    if listed is not None:
        return listed
    tensor = first_tensor(batch)
    return 1 if tensor is None or tensor.dim() == 0 else int(tensor.shape[0])


def samples_in_lists(batch: Any) -> int | None:
    """Number of samples where inputs, and targets if any, are lists with one entry per sample."""
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], (tuple, list)):
        return None
    inputs, count = batch[0], len(batch[0])
    if count == 0 or not all(isinstance(item, Tensor) for item in inputs):
        return None
    targets = batch[1] if len(batch) > 1 else None
    if isinstance(targets, (tuple, list)) and len(targets) == count and not isinstance(targets[0], Tensor):
        return count
    # Tensors of several inputs share the samples' dimension; images of different sizes do not share theirs.
    return count if len({item.shape for item in inputs}) > 1 and not _share_first(batch) else None


def _share_first(batch: Any) -> bool:
    return len({tensor.shape[:1] for tensor in tensors(batch)}) == 1


def take_samples(batch: Any, count: int) -> Any:
    """The first samples of a batch: every tensor whose first dimension is the batch's is cut."""
    size = batch_size(batch)
    if size <= count:
        return batch
    if samples_in_lists(batch) is not None:
        cut = [
            item[:count] if isinstance(item, (tuple, list)) and len(item) == size else item for item in batch
        ]
        return type(batch)(cut)
    return map_tensors(
        batch, lambda tensor: tensor[:count] if tensor.dim() and tensor.shape[0] == size else tensor
    )
