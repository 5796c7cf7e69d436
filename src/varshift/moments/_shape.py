"""The shape of an input, where the network itself states it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from varshift._errors import DataError, ModelError
from varshift.flow import Flow, capture
from varshift.model import Forward

_SETTINGS = ("pretrained_cfg", "default_cfg")  # where timm and its kin keep the size of their inputs
_HANDED_ON = ("view", "activation")  # operations that may hand on every number of the input


def stated_shape(network: nn.Module, forward: Forward | None = None) -> tuple[int, ...]:
    """Shape of an input without the batch dimension, from what the network says of it.

    A network states its input in two ways: by its settings (``pretrained_cfg`` or ``default_cfg`` with an
    ``input_size``, as timm's networks have them), or by a linear layer that reads the input before anything
    else with weights does. Any other shape would be a guess, and statistics depend on it: on small images
    those for 224 pixels are off by a quarter to a third.

    Args:
        network: The network.
        forward: How it is called with a batch.

    Raises:
        DataError: If the network states no shape that it runs on: the caller has to say it.
    """
    for shape in _settings(network):
        if _deployed(network, shape, forward) is not None:
            return shape
    features = _features(network, forward)
    if features is not None:
        return (features,)
    raise DataError(
        "shape is None, and the network does not state the size of its input (neither by an input_size in "
        "its default_cfg nor by a linear layer that reads the input first): pass shape=, without the batch "
        "dimension, or a loader."
    )


def _settings(network: nn.Module) -> Iterator[tuple[int, ...]]:
    for name in _SETTINGS:
        settings: Any = getattr(network, name, None)
        size = (
            settings.get("input_size")
            if isinstance(settings, Mapping)
            else getattr(settings, "input_size", None)
        )
        if isinstance(size, Sequence) and size and all(type(extent) is int and extent > 0 for extent in size):
            yield tuple(size)


def _features(network: nn.Module, forward: Forward | None) -> int | None:
    """Number of input features, if a linear layer reads the input before anything else with weights does."""
    first = next((module for module in network.modules() if isinstance(module, nn.Linear)), None)
    if first is None:
        return None
    flow = _deployed(network, (first.in_features,), forward)
    if flow is None or not _reads_the_input(flow, network, first):
        return None
    # A network that also runs on one feature more picks what it reads, and states nothing.
    return first.in_features if _deployed(network, (first.in_features + 1,), forward) is None else None


def _deployed(network: nn.Module, shape: Sequence[int], forward: Forward | None) -> Flow | None:
    try:
        return capture(network, torch.zeros(2, *shape), forward=forward).eval
    except (ModelError, DataError):
        return None


def _reads_the_input(flow: Flow, network: nn.Module, layer: nn.Linear) -> bool:
    """Whether a layer is the first to bring weights to the input, and gets every number of it."""
    names = {name for name, module in network.named_modules() if module is layer}
    learned: set[int] = set()  # what derives from weights alone
    whole: dict[int, int] = {}  # what derives from the input, number for number, and how many numbers
    for node in flow.nodes:
        if node.kind == "input":
            whole[node.index] = math.prod(node.shape or ())
        elif node.kind in ("parameter", "buffer") or (
            node.inputs and all(index in learned for index in node.inputs)
        ):
            learned.add(node.index)
        elif any(index in learned for index in node.inputs):
            rest = [index for index in node.inputs if index not in learned]
            return node.module in names and all(index in whole for index in rest)
        else:
            sizes = {whole.get(index) for index in node.inputs}
            if node.kind in _HANDED_ON and sizes == {math.prod(node.shape or ())}:
                whole[node.index] = math.prod(node.shape or ())
    return False
