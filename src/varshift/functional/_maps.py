"""The maps of a batch, walked through in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Values per block and thread: few enough that what one operator writes the next still finds in the last-level
# cache, and many enough that threads need not meet often.
_BLOCK = 1 << 20


class Maps:
    """The maps of a batch ``(B, C, *)`` in memory order, with the N positions of a map on axis 1.

    Contiguous input is a table of rows, one per map, ``(B C, N)``; channels-last input is ``(B, N, C)``. What
    there is one of per map then has the shape ``(B C,)`` or ``(B, C)``.

    Args:
        x: The batch, not empty. Input of any other layout is copied.

    Attributes:
        x: Its maps.
        positions: N.
        dtype: The type to compute in: float32 at least.
    """

    def __init__(self, x: Tensor) -> None:
        self.batch, self.channels = x.shape[:2]
        self.positions = x.numel() // (self.batch * self.channels)
        packed = x.movedim(1, -1).is_contiguous()
        self._last = packed and (self.positions == 1 or not x.is_contiguous())
        self._source = x if packed or x.is_contiguous() else x.contiguous()
        self.x = self._view(self._source)
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        # torch's batch norm scales and shifts rows in one pass, but only so in main memory
        self.rows_have_kernel = x.device.type == "cpu" and not self._last

    def _view(self, tensor: Tensor) -> Tensor:
        if self._last:
            return tensor.movedim(1, -1).reshape(self.batch, self.positions, self.channels)
        return tensor.reshape(self.batch * self.channels, self.positions)

    def of(self, tensor: Tensor) -> Tensor:
        """The maps of another tensor of the same shape; copies it where its layout differs."""
        return self._view(tensor)

    def new(self) -> tuple[Tensor, Tensor]:
        """An uninitialised batch of the same shape, layout and type, and its maps."""
        batch = torch.empty_like(self._source)
        return batch, self._view(batch)

    def scalars(self) -> Tensor:
        """Room for one number per map."""
        shape = (self.batch, self.channels) if self._last else (self.batch * self.channels,)
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def spread(self, values: Tensor) -> Tensor:
        """Values per channel, as one number per map."""
        spread = values.to(self.dtype).expand(self.batch, self.channels)
        return spread if self._last else spread.reshape(-1)

    def fold(self, scalars: Tensor, like: Tensor) -> Tensor:
        """One number per map, summed over the samples, in the type of a parameter."""
        return scalars.view(self.batch, self.channels).sum(0).to(like.dtype)

    def blocks(self) -> Iterator[slice]:
        """Slices of axis 0; a single one outside main memory."""
        length, step = self.x.shape[0], self.x.shape[0]
        if self.x.device.type == "cpu":
            step = max(1, _BLOCK * torch.get_num_threads() * length // self.x.numel())
        for start in range(0, length, step):
            yield slice(start, min(length, start + step))

    def wide(self, block: Tensor) -> Tensor:
        """A block in the type to compute in."""
        return block if block.dtype == self.dtype else block.to(self.dtype)

    def room(self, block: Tensor) -> Tensor:
        """Where to compute what ends up in a block: the block itself, or a wider one."""
        return block if block.dtype == self.dtype else torch.empty_like(block, dtype=self.dtype)

    def power(self, x: Tensor, scratch: Tensor) -> Tensor:
        """Mean square of every map of a block; may overwrite `scratch`, which has the block's shape."""
        if self.positions == 1:
            return x.squeeze(1).square()
        if self._last:  # here torch's vector norm takes a slow way
            return torch.mul(x, x, out=scratch).sum(1).div_(self.positions)
        return torch.linalg.vector_norm(x, dim=1).square_().div_(self.positions)

    def total(self, x: Tensor, out: Tensor) -> None:
        """Writes the sum of every map of a block."""
        if self.positions == 1:
            out.copy_(x.squeeze(1))
        else:
            torch.sum(x, 1, out=out)

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
        """Writes ``scale x + shift`` for a block, with one scale and shift per map."""
        if self.rows_have_kernel:
            # the norm of mean 0, variance 1 and eps 0
            zero, one, none = torch.zeros_like(scale), torch.ones_like(scale), scale.new_empty(0)
            into = (out.unsqueeze(0), none, none)
            torch.native_batch_norm(x.unsqueeze(0), scale, shift, zero, one, False, 0.0, 0.0, out=into)
        else:
            torch.addcmul(shift.unsqueeze(1), x, scale.unsqueeze(1), out=out)


def pass_where_not_negative(gradient: Tensor, margin: Tensor) -> Tensor:
    """The gradient where a margin is at least 0, else 0; written over the margin.

    torch's kernel asks for strictly more than a number, so it gets the nearest one below 0.
    """
    nearest = -torch.finfo(margin.dtype).smallest_normal
    return torch.ops.aten.threshold_backward.grad_input(gradient, margin, nearest, grad_input=margin)
