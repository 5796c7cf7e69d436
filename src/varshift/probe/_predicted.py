"""Running statistics that fit the deployed network, predicted instead of measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from varshift.model import Forward, Norm
from varshift.moments import predict

Statistics = dict[str, tuple[Tensor, Tensor]]


def predicted_statistics(
    network: nn.Module, norms: Sequence[Norm], shape: Any, forward: Forward | None
) -> tuple[Statistics, dict[str, str]]:
    """Mean and variance of each norm's input in the state `clean`, and why other norms have none.

    Args:
        network: The network.
        norms: Its norms.
        shape: Shape of an input without the batch dimension, or several of them.
        forward: How the network is called with a batch.
    """
    prediction = predict(network, shape=shape, forward=forward)
    layers = {layer.name: layer for layer in prediction.layers}
    found: Statistics = {}
    reasons: dict[str, str] = {}
    for norm in norms:
        layer = layers.get(norm.name)
        if layer is None:
            reasons[norm.name] = "what reaches it could not be predicted"
        elif not layer.noise:
            reasons[norm.name] = "no noise reaches it, so its statistics fit"
        elif norm.name not in prediction.statistics:
            why = layer.reason or "not all of its calls were followed"
            reasons[norm.name] = f"what reaches it could not be predicted, since {why}"
        elif layer.confidence == "low":
            reasons[norm.name] = "its prediction is uncertain"
        else:
            found[norm.name] = prediction.statistics[norm.name]
    return found, reasons
