"""A norm for each of several calls in one forward pass."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from varshift.fixes._surgery import HOOKS

_SAMPLE = 16  # values that are kept of an input to know it again
_PASSES = 32  # forward passes whose inputs are known: several may go before one backward pass


class NormPerCall(nn.Module):
    """Norms that take turns: the first call in a forward pass of the network goes to the first, and so on.

    A network that calls one norm for several signals gets statistics that fit none of them. Here every call
    has statistics of its own. The turn begins with every forward pass of the network, also after one that
    raised. Where activation checkpointing runs a piece of the forward again for the backward pass, an input
    is known again by its shape and some of its values, and goes to the norm that it went to before.

    Attributes:
        norms: One norm for each call.

    Args:
        norm: The norm that is called several times; it becomes the first of the norms.
        calls: Number of calls in a forward pass, at least 1.
        shared: Whether the copies share the norm's weight and bias, and have statistics of their own only.

    In its state the keys of the norm come once for every call; a state of the single norm loads, too, into
    all of them.

    Example:
        >>> import torch
        >>> from varshift.fixes import NormPerCall
        >>> norm = NormPerCall(torch.nn.BatchNorm1d(2), 2)
        >>> for shift in (0.0, 10.0):
        ...     _ = norm(torch.randn(64, 2) + shift)
        >>> [bool(one.running_mean.mean() > 0.5) for one in norm.norms]
        [False, True]
    """

    def __init__(self, norm: nn.Module, calls: int, shared: bool = True) -> None:
        super().__init__()
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
            raise ValueError(f"calls={calls!r} must be a whole number of at least 1.")
        copies = [_copied(norm, shared) for _ in range(calls - 1)]
        self.norms = nn.ModuleList([norm, *copies])
        self.training = self.norms.training = norm.training
        self._turn = 0
        self._again = False  # the whole network is run again in a backward pass
        self._seen: deque[tuple[int, torch.Size, Tensor]] = deque(maxlen=_PASSES * calls)

    def begin(self, *_: Any) -> None:
        """Starts the turn again: a forward pre-hook of the network."""
        self._turn = 0
        self._again = not torch.compiler.is_compiling() and _in_backward()

    def forward(self, input: Tensor) -> Tensor:
        """Normalises with the norm whose turn it is."""
        norms, compiling = self.norms, torch.compiler.is_compiling()
        repeated = not compiling and not self._again and _in_backward()
        if repeated:
            return norms[self._turn_of(input)](input)
        turn = self._turn % len(norms)
        self._turn = turn + 1
        if self._again:
            self._again = self._turn < len(norms)
        elif self.training and not compiling:
            self._seen.append((turn, input.shape, _sample(input)))
        return norms[turn](input)

    def _turn_of(self, input: Tensor) -> int:
        """The turn that an input had in its forward pass."""
        seen = [(turn, values) for turn, shape, values in self._seen if shape == input.shape]
        if len({turn for turn, _ in seen}) < 2:
            return seen[0][0] if seen else 0
        values = _sample(input)
        return min(seen, key=lambda one: float((values - one[1]).abs().sum()))[0]

    def __getattr__(self, name: str) -> Any:
        """What is read of a norm is read of the first: ``num_features``, ``weight``, ``eps``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_modules" not in vars(self) or "norms" not in self._modules:
                raise
            return getattr(self.norms[0], name)

    def __getstate__(self) -> dict[str, Any]:
        seen: deque[Any] = deque(maxlen=self._seen.maxlen)
        return {**vars(self), "_turn": 0, "_again": False, "_seen": seen}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        for name in list(self.norms[0].state_dict()):
            value = state_dict.pop(prefix + name, None)
            if value is not None:
                for place in range(len(self.norms)):
                    state_dict.setdefault(f"{prefix}norms.{place}.{name}", value)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _copied(norm: nn.Module, shared: bool) -> nn.Module:
    """A copy of a norm, with the very parameters or copies of them."""
    keep = {id(one): one for one in norm.parameters()} if shared else {}
    twin = copy.deepcopy(norm, keep)
    for name in HOOKS:
        vars(twin)[name] = copy.copy(vars(norm)[name])
    return twin


def _sample(input: Tensor) -> Tensor:
    """Some values of an input, spread over all of it."""
    flat = input.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLE)
    return flat[::step][:_SAMPLE].clone()


def _in_backward() -> bool:
    """Whether autograd runs a backward pass now: what is called then is a forward that is run again."""
    return torch._C._current_graph_task_id() != -1
