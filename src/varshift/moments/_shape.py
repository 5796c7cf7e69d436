"""The shape of an input, guessed from the network itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from varshift._errors import DataError, ModelError
from varshift.flow import capture
from varshift.model import Forward

_EXTENTS = {1: (256, 64), 2: (224, 32, 64, 28, 8, 299), 3: (16, 32)}


def guess_shape(network: nn.Module, forward: Forward | None = None) -> tuple[int, ...]:
    """Shape of an input without the batch dimension that the network runs on.

    A network says its own input size (``default_cfg``, as timm's do), or its first layer with weights says
    how many channels it takes, and usual extents are tried. Statistics depend little on the extent.

    Args:
        network: The network.
        forward: How it is called with a batch.

    Raises:
        DataError: If no shape fits: the caller has to say it.
    """
    for shape in _candidates(network):
        try:
            capture(network, torch.zeros(2, *shape), forward=forward)
        except (ModelError, DataError):
            continue
        return shape
    raise DataError(
        "the shape of an input cannot be told from the network: pass shape=, without the batch dimension, "
        "or a loader."
    )


def _candidates(network: nn.Module) -> Iterator[tuple[int, ...]]:
    settings = getattr(network, "default_cfg", None)
    size = settings.get("input_size") if isinstance(settings, Mapping) else None
    if size:
        yield tuple(int(extent) for extent in size)
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            axes = len(module.kernel_size)
            for extent in _EXTENTS[axes]:
                yield (module.in_channels, *(extent,) * axes)
            return
        if isinstance(module, nn.Linear):
            yield (module.in_features,)
            return
