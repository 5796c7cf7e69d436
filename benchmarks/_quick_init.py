"""Weights that are random enough, made quickly: for trials that do not depend on their distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)
_LARGE = 50_000


class QuickInit(TorchFunctionMode):
    """Context in which large tensors are filled with copies of a few thousand random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = 0.05 * torch.randn(4093)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Fills a large tensor, and calls everything else."""
        tensor = args[0] if args else None
        if isinstance(tensor, Tensor) and tensor.numel() > _LARGE and tensor.device.type == "cpu":
            if func in _DRAWS and tensor.is_contiguous():
                flat = tensor.detach().view(-1)
                count = len(flat) // len(self._numbers)
                flat[: count * len(self._numbers)].view(count, -1).copy_(self._numbers)
                flat[count * len(self._numbers) :] = 0.01
                return tensor
            if func is torch.Tensor.erfinv_:
                return tensor
        return func(*args, **(kwargs or {}))
