"""What a user passed as the data of a check: a loader, or one example input. The one place that decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from varshift._errors import DataError
from varshift.model import Forward, read_call


def is_example(network: nn.Module, data: Any, forward: Forward | None) -> bool:
    """Whether data are one example input rather than a loader.

    A tensor is an example input, and so is a tuple or a mapping of tensors that the network takes as it is.
    Anything else is a loader: a list, too, holds batches.

    Raises:
        DataError: If the data are one batch with targets, which is neither.
    """
    if isinstance(data, Tensor):
        return True
    values: list[Any] = []
    if isinstance(data, Mapping):
        values = [value for value in data.values() if isinstance(value, Tensor)]
    elif isinstance(data, tuple) and all(isinstance(item, Tensor) for item in data):
        values = list(data)
    if not values:
        return False
    if forward is not None:  # only the user's function knows what is a target
        return True
    call = read_call(network, data)
    if call.targets is None:
        return True
    count = len(call.args) + len(call.kwargs)
    raise DataError(
        f"loader is a {type(data).__name__} of {len(values)} tensors, and {type(network).__name__} takes "
        f"{count} of them: this looks like one batch with targets. Wrap it in a list, [batch], to measure on "
        "it, or pass its inputs alone as an example."
    )
