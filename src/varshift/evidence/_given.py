"""What a user passed as the data of a check: a loader, or one example input. The one place that decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from varshift._errors import DataError
from varshift.model import Forward, is_whole, read_call


def is_example(network: nn.Module, data: Any, forward: Forward | None) -> bool:
    """Whether data are one example input rather than a loader.

    A tensor is an example input, and so are a tuple of tensors, a mapping with tensors and an object that is
    one batch (a graph, a packed sequence), where the network takes all of it. Anything else is a loader; so
    is a list.

    Raises:
        DataError: If the data are one batch with targets, which is neither.
    """
    if isinstance(data, Tensor):
        return True
    if not (is_whole(data) or _holds_tensors(data)):
        return False
    # Only the user's own function knows what is a target.
    if forward is not None or read_call(network, data).targets is None:
        return True
    raise DataError(
        f"loader is a {type(data).__name__} that holds tensors, more than {type(network).__name__} takes as "
        "inputs: this looks like one batch with targets. Wrap it in a list, [batch], to measure on it, or "
        "pass its inputs alone as an example."
    )


def _holds_tensors(data: Any) -> bool:
    if isinstance(data, Mapping):
        return any(isinstance(value, Tensor) for value in data.values())
    if not isinstance(data, tuple) or not any(isinstance(item, Tensor) for item in data):
        return False
    return all(item is None or isinstance(item, Tensor) for item in data)  # a packed sequence may hold None
