"""Picks out the results of single operations inside the forward of a module."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from varshift.model import Place


class Listener(TorchDispatchMode):
    """Calls back with the results of chosen operations, counted from the beginning of a pass.

    Operations arrive whole, as they do when a network is captured, so that both count alike.

    Args:
        hear: What to call with the result of each chosen operation.
        counts: How many operations of each name ran so far in this pass.
    """

    def __init__(self, hear: Mapping[Place, Callable[[Tensor], None]], counts: Counter[str]) -> None:
        super().__init__()
        self._hear, self._counts = hear, counts
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Begins to listen."""
        guard = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
        self._stack.enter_context(torch.inference_mode() if guard is None else guard())
        self._stack.enter_context(self)

    def stop(self) -> None:
        """Stops listening."""
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        self._counts[name] += 1
        hear = self._hear.get((name, self._counts[name]))
        if hear is not None and isinstance(result, Tensor):
            hear(result)
        return result
