"""The norms of a live model: modules that own running statistics, whatever their class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from varshift.model._facts import NormFacts

# How the pair of running statistics is called; the first is torch's own.
STATISTICS_NAMES = (
    ("running_mean", "running_var"),
    ("running_mean", "running_variance"),
    ("moving_mean", "moving_var"),
    ("moving_mean", "moving_variance"),
    ("moving_avg", "moving_var"),
)

Kind = Literal["batch", "instance", "custom"]


@dataclass(frozen=True, eq=False)
class Norm:
    """A module with running statistics.

    Attributes:
        name: Its (first) path in the model.
        module: The module itself.
        kind: ``"batch"`` and ``"instance"`` for subclasses of torch's own norms, ``"custom"`` for any other
            module that owns a pair of running statistics.
        mean_name: Name of the buffer with the running mean.
        var_name: Name of the buffer with the running variance.
    """

    name: str
    module: nn.Module
    kind: Kind
    mean_name: str
    var_name: str

    @property
    def mean(self) -> Tensor:
        """The running mean, the module's own buffer."""
        return getattr(self.module, self.mean_name)

    @property
    def var(self) -> Tensor:
        """The running variance, the module's own buffer."""
        return getattr(self.module, self.var_name)

    @property
    def readable(self) -> bool:
        """Whether the statistics have values at all."""
        return not (self.mean.is_meta or self.var.is_meta)

    @property
    def never_moved(self) -> bool:
        """Whether the statistics are those of a new norm, exactly 0 and 1; False without values."""
        return self.readable and bool((self.mean == 0).all()) and bool((self.var == 1).all())

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.mean.numel()

    @property
    def momentum(self) -> float | None:
        """Its momentum, None for a cumulative average."""
        value = getattr(self.module, "momentum", None)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def tracks(self) -> bool:
        """False for a norm of torch's that owns running statistics but was told not to update them."""
        return self.kind != "batch" or bool(getattr(self.module, "track_running_stats", True))

    @property
    def overrides_forward(self) -> bool:
        """Whether its forward is not torch's own, so that its behaviour has to be observed."""
        forward = type(self.module).forward
        own = (_BatchNorm.forward, _InstanceNorm.forward, nn.SyncBatchNorm.forward)
        return forward not in own


def statistics_of(module: nn.Module) -> tuple[str, str] | None:
    """Names of a module's own pair of running statistics, None when it has none."""
    for mean_name, var_name in STATISTICS_NAMES:
        mean, var = module._buffers.get(mean_name), module._buffers.get(var_name)
        if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
            continue
        if not is_lazy(mean) and not is_lazy(var) and mean.numel() == var.numel() > 0:
            return mean_name, var_name
    return None


def find_norms(model: nn.Module) -> tuple[Norm, ...]:
    """All norms of a model in the order of its modules, shared ones once."""
    return tuple(_norms(model))


def _norms(model: nn.Module) -> Iterator[Norm]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        names = statistics_of(module)
        if names is None:
            continue
        mean = getattr(module, names[0])
        if id(mean) in seen:
            continue
        seen.add(id(mean))
        kind: Kind = "custom"
        if isinstance(module, _BatchNorm):
            kind = "batch"
        elif isinstance(module, _InstanceNorm):
            kind = "instance"
        yield Norm(name, module, kind, *names)


def norm_facts(norm: Norm, *, live: bool) -> NormFacts:
    """Reads what a norm says about itself.

    Args:
        norm: The norm.
        live: Whether it is in training mode after ``model.train()``.
    """
    module = norm.module
    eps = float(getattr(module, "eps", 0.0) or 0.0)
    counter = getattr(module, "num_batches_tracked", None)
    parameters = list(module.parameters(recurse=False))
    readable = norm.readable
    mean = norm.mean.detach().reshape(-1).cpu().double() if readable else torch.zeros(0)
    var = norm.var.detach().reshape(-1).cpu().double() if readable else torch.zeros(0)
    finite = torch.isfinite(var)
    finite_var = var[finite]
    return NormFacts(
        name=norm.name,
        cls=type(module).__name__,
        channels=norm.channels,
        eps=eps,
        momentum=norm.momentum,
        dtype=str(norm.var.dtype).removeprefix("torch."),
        batches_tracked=int(counter) if isinstance(counter, Tensor) and not counter.is_meta else None,
        never_moved=norm.never_moved,
        nonfinite=int((~(finite & torch.isfinite(mean))).sum()) if readable else 0,
        negative=int((finite_var < 0).sum()),
        collapsed=int(((finite_var >= 0) & (finite_var < 100 * eps)).sum()),
        largest=float(finite_var.max()) if finite_var.numel() else None,
        live=live,
        frozen_parameters=bool(parameters) and not any(p.requires_grad for p in parameters),
        tracks=norm.tracks,
    )
