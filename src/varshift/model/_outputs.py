"""What comes back from a model: its main output tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_OUTPUT_KEYS = ("logits", "out", "output", "outputs", "prediction", "predictions", "last_hidden_state")


def primary_output(outputs: Any) -> Tensor | None:
    """The main output tensor of a model: the output itself, ``.logits``, or the first tensor inside."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, PackedSequence):
        return outputs.data
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
