"""The norms of a live model: what keeps running statistics, whatever its class and wherever it keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from varshift.model._facts import NormFacts
from varshift.model._norm_states import NormStates, stored, variance_of
from varshift.model._state import State, find_state
from varshift.model._unwrap import canonical_names

TORCH_STATISTICS = ("running_mean", "running_var")

Kind = Literal["batch", "instance", "custom"]

# A variance of eps / 100 leaves a norm as a tenth of a standard deviation: the channel carries its bias and
# little else. A weight of a thousandth of the largest switches the channel off on purpose.
_LOST = 0.01
_ZERO = 1e-3


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm with running statistics.

    Attributes:
        name: The (first) path of its module in the model, with ``#2`` and so on for a second norm of it.
        module: The module that normalises.
        kind: ``"batch"`` and ``"instance"`` for subclasses of torch's own norms, ``"custom"`` for any other.
        states: Where it keeps its statistics, and in which form.
        mean_state: The place of its mean; None for a norm that subtracts none.
        spread_state: The place of its variance in some form; None for a norm that only subtracts a mean.
    """

    name: str
    module: nn.Module
    kind: Kind
    states: NormStates
    mean_state: State | None
    spread_state: State | None

    @property
    def mean(self) -> Tensor:
        """The running mean: the norm's own tensor, or zeros for a norm that subtracts none."""
        if self.mean_state is not None:
            return self.mean_state.tensor
        return torch.zeros_like(self.spread.detach())

    @property
    def spread(self) -> Tensor:
        """The state that holds the variance in some form, the norm's own tensor."""
        return self.spread_state.tensor if self.spread_state is not None else self.mean

    @property
    def var(self) -> Tensor:
        """The running variance: the norm's own tensor, or what it says where it holds another form.

        For a norm that subtracts no mean it is the mean square, used as its variance.
        """
        if self.spread_state is None:
            return torch.ones_like(self.mean.detach())
        if self.states.form == "variance":
            return self.spread
        return variance_of(self.states.form, self.mean.detach(), self.spread.detach(), self.states.eps)

    @property
    def centred(self) -> bool:
        """False for a norm that divides by a mean square: what it calls variance is about zero."""
        return self.mean_state is not None

    def changes(self, mean: Tensor, var: Tensor) -> list[tuple[State, Tensor]]:
        """What has to be written where for the norm to have these statistics."""
        values: list[tuple[State, Tensor]] = []
        if self.mean_state is not None:
            values.append((self.mean_state, mean))
        if self.spread_state is not None:
            spread = self.spread_state.tensor
            value = stored(self.states.form, mean.double(), var.double(), self.states.eps)
            values.append(
                (self.spread_state, value.to(spread.dtype) if value.dtype != spread.dtype else value)
            )
        return values

    @property
    def own_states(self) -> tuple[State, ...]:
        """The places of its statistics."""
        return tuple(state for state in (self.mean_state, self.spread_state) if state is not None)

    @property
    def readable(self) -> bool:
        """Whether the statistics have values at all."""
        return not (self.mean.is_meta or self.spread.is_meta)

    @property
    def never_moved(self) -> bool:
        """Whether the statistics are those of a new norm, exactly 0 and 1; False without values."""
        if not self.readable or self.states.unsupported is not None:
            return False
        if self.states.form != "variance":
            start = stored(self.states.form, torch.zeros(1), torch.ones(1), self.states.eps).to(self.spread)
            moved = not bool((self.spread == start).all()) and not bool((self.spread == start.round()).all())
            return not moved and bool((self.mean == 0).all())
        return bool((self.mean == 0).all()) and bool((self.var == 1).all())

    @property
    def channels(self) -> int:
        """Number of channels of one row of statistics."""
        return self.states.channels

    @property
    def rows(self) -> int:
        """Number of rows of statistics."""
        return self.states.rows

    @property
    def size(self) -> int:
        """Number of statistics of each kind."""
        return self.states.channels * self.states.rows

    @property
    def momentum(self) -> float | None:
        """Weight of a batch in its statistics, None for a cumulative average."""
        if self.kind == "custom" and self.states.momentum is not None:
            return self.states.momentum
        value = getattr(self.module, "momentum", None)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def per_sample(self) -> bool:
        """Whether its statistics are averages of those of single samples."""
        return self.kind == "instance" or self.states.per_sample

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


def declared_states(model: nn.Module, names: Mapping[str, str]) -> dict[str, NormStates]:
    """The statistics of modules that keep them as torch's own norms do, by canonical module path.

    Frozen norms and norms that come with varshift are among them: whoever loads the weights of a batch norm
    has its buffers ``running_mean`` and ``running_var``.

    Args:
        model: The model.
        names: Canonical module names.
    """
    declared: dict[str, NormStates] = {}
    for path, module in model.named_modules():
        mean, var = (module._buffers.get(name) for name in TORCH_STATISTICS)
        if (
            mean is None
            or var is None
            or is_lazy(mean)
            or is_lazy(var)
            or not mean.numel() == var.numel() > 0
        ):
            continue
        name = names.get(path, path)
        mean_name, var_name = (f"{name}.{key}" if name else key for key in TORCH_STATISTICS)
        rows = mean.shape[0] if mean.dim() == 2 and not isinstance(module, _BatchNorm) else 1
        declared[name] = NormStates(mean_name, var_name, channels=mean.numel() // rows, rows=rows)
    return declared


def find_norms(
    model: nn.Module, recognised: Mapping[str, NormStates | None] | None = None
) -> tuple[Norm, ...]:
    """All norms of a model in the order of its modules, shared ones once.

    Args:
        model: The model.
        recognised: The norms that a capture of the model recognised by what they do
            (`varshift.flow.recognised_norms`), by name; None marks a module that keeps statistics like a
            norm's and normalises with none. Without a capture norms are known by torch's own classes and
            by the buffers that these have.
    """
    return tuple(_norms(model, recognised or {}))


def _norms(model: nn.Module, recognised: Mapping[str, NormStates | None]) -> Iterator[Norm]:
    known = {**declared_states(model, canonical_names(model)), **recognised}
    by_module: dict[str, list[str]] = {}
    for name in known:
        by_module.setdefault(name.partition("#")[0], []).append(name)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name in by_module.get(path, ()):
            states = known[name]
            if states is None:
                continue
            mean, spread = (
                find_state(model, target) if target is not None else None
                for target in (states.mean, states.spread)
            )
            first = mean or spread
            if first is None or id(first.tensor) in seen:
                continue
            seen.add(id(first.tensor))
            kind: Kind = "custom"
            if isinstance(module, _BatchNorm):
                kind = "batch"
            elif isinstance(module, _InstanceNorm):
                kind = "instance"
            yield Norm(name, module, kind, states, mean, spread)


def norm_limit(norm: Norm, reason: str | None = None) -> str:
    """The sentence for a report on a norm that can be neither measured nor recalibrated.

    Args:
        norm: The norm.
        reason: Why not; by default what its states say.
    """
    return (
        f"The norm '{norm.name}' ({type(norm.module).__name__}) could not be measured: "
        f"{reason or norm.states.unsupported}."
    )


def norm_facts(norm: Norm, *, live: bool, reestimated: str | None = None) -> NormFacts:
    """Reads what a norm says about itself.

    Args:
        norm: The norm.
        live: Whether it is in training mode after ``model.train()``.
        reestimated: What the mark of its statistics says, if they bear one (`varshift.model.origins`).
    """
    module = norm.module
    eps = float(getattr(module, "eps", 0.0) or 0.0)
    counter = getattr(module, "num_batches_tracked", None)
    own = {id(state.tensor) for state in norm.own_states}
    parameters = [value for value in module.parameters(recurse=False) if id(value) not in own]
    readable = norm.readable and norm.states.unsupported is None
    mean = norm.mean.detach().reshape(-1).cpu().double() if readable else torch.zeros(0, device="cpu")
    var = norm.var.detach().reshape(-1).cpu().double() if readable else torch.zeros(0, device="cpu")
    finite = torch.isfinite(var)
    finite_var = var[finite]
    return NormFacts(
        name=norm.name,
        cls=type(module).__name__,
        channels=norm.channels,
        eps=eps,
        momentum=norm.momentum,
        dtype=str(norm.spread.dtype).removeprefix("torch."),
        batches_tracked=int(counter) if isinstance(counter, Tensor) and not counter.is_meta else None,
        never_moved=norm.never_moved,
        nonfinite=int((~(finite & torch.isfinite(mean))).sum()) if readable else 0,
        negative=int((finite_var < 0).sum()),
        collapsed=int((_collapsed(norm, var, eps) & finite).sum()),
        largest=float(finite_var.max()) if finite_var.numel() else None,
        live=live,
        frozen_parameters=bool(parameters) and not any(p.requires_grad for p in parameters),
        tracks=norm.tracks,
        reestimated=reestimated,
        affine_moved=_affine_moved(module),
    )


def _collapsed(norm: Norm, var: Tensor, eps: float) -> Tensor:
    """The channels of which no signal leaves the norm although its weight asks for one."""
    lost = (var >= 0) & (var < _LOST * eps)
    weight = _affine(norm.module, "weight")
    if weight is None or weight.numel() == 0 or weight.numel() != lost.numel():
        return lost
    size = weight.abs()
    return lost & (size > _ZERO * size.max())


def _affine_moved(module: nn.Module) -> bool | None:
    weight, bias = _affine(module, "weight"), _affine(module, "bias")
    if weight is None and bias is None:
        return None
    return bool(weight is not None and (weight != weight[:1]).any()) or bool(bias is not None and bias.any())


def _affine(module: nn.Module, name: str) -> Tensor | None:
    """A norm's factors or terms, one per channel; None where it has none that can be read."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor) or value.is_meta or is_lazy(value) or not value.is_floating_point():
        return None
    return value.detach().reshape(-1).cpu().double()
