"""What a training step does to the norms: how often each is updated, on what, and at which weights."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from varshift.flow import RecognisedNorms
from varshift.model import Call, Norm, Rehearsal, find_norms, first_tensor

_PROBED = 64  # elements of each parameter by which it is told whether it moved
_SAME = 1e-4  # relative distance of the moments of the same batch, computed twice
_UPHILL = 0.5  # cosine from which a move of the weights belongs to the step's own


@dataclass(frozen=True, slots=True)
class NormUpdates:
    """What one step of the optimiser does to one norm.

    Attributes:
        name: The norm.
        training: Whether it was in training mode at each of its calls; None where some were and some not.
        was_training: Its flag before the step, with what the model was handed over in.
        updates: Number of updates of its statistics.
        recomputed: How many of them came in the backward pass: activation checkpointing.
        perturbed: How many were made at other weights than the first one, before the optimiser moved.
        pieces: How many were made of pieces of the batch; 0 where each saw all of it.
        again: How many were made of a batch that had been counted already, at the same weights.
        momentum: Weight of a batch in the statistics, None where it is not constant.
        values: Values per channel in one update.
        variance_ratio: Batch variance at the other weights over that at the step's own, of channel means.
        mean_offset: Root mean square over channels of the offset of the mean there, in standard deviations.
        trainable: Whether some of its own parameters require a gradient; None without parameters.
        moved: Whether its statistics moved.
    """

    name: str
    training: bool | None
    was_training: bool
    updates: int
    recomputed: int = 0
    perturbed: int = 0
    pieces: int = 0
    again: int = 0
    momentum: float | None = None
    values: float | None = None
    variance_ratio: float | None = None
    mean_offset: float | None = None
    trainable: bool | None = None
    moved: bool = False


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a training step does; plain data.

    Attributes:
        optimizer_steps: Steps of optimisers in one call.
        samples: Samples of the batch that it was handed.
        piece: Samples of one forward pass of the network, None where it was not called as a whole.
        norms: The norms that ran, by name.
        moved: Parameters that the step moved, by name.
        trainable: Parameters that require a gradient, by name.
        quiet_noise: Noise modules that ran in evaluation mode only.
    """

    optimizer_steps: int
    samples: int
    piece: int | None
    norms: Mapping[str, NormUpdates] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()
    trainable: frozenset[str] = frozenset()
    quiet_noise: tuple[str, ...] = ()


@dataclass(slots=True)
class _Event:
    """One call of a norm."""

    training: bool
    updated: bool
    recomputed: bool
    done: int
    weights: Tensor
    moments: tuple[Tensor, Tensor] | None
    values: float | None
    momentum: float | None


def watch_step(rehearsal: Rehearsal, calls: Sequence[Call], recognised: RecognisedNorms | None) -> StepFacts:
    """Runs a step twice, on two batches, and says what the second did.

    Args:
        rehearsal: The copies of model and step, entered.
        calls: The batches.
        recognised: The norms written by hand.
    """
    network = rehearsal.network
    recorder = _Recorder(network, find_norms(network, recognised))
    names = dict(network.named_parameters())
    before = {name: _probe(parameter) for name, parameter in names.items()}
    with recorder, torch.enable_grad():
        for call in (calls[0], calls[1 % len(calls)]):
            own = call.copy()
            recorder.start(own.size)
            rehearsal.step(network, own.batch)
            recorder.end()
    moved = {name for name, p in names.items() if not torch.equal(before[name], _probe(p))}
    trainable = {name for name, p in names.items() if p.requires_grad}
    return recorder.facts(frozenset(moved), frozenset(trainable))


class _Recorder:
    """Listens to the norms of a copy while a step runs on it."""

    def __init__(self, network: nn.Module, norms: Sequence[Norm]) -> None:
        self._network = network
        self._norms = [norm for norm in norms if norm.readable and norm.states.unsupported is None]
        self._parameters = {id(p) for p in network.parameters()}
        self._noise = {name: m for name, m in network.named_modules() if isinstance(m, _DropoutNd)}
        self._stack = contextlib.ExitStack()
        self.start(0)

    def start(self, samples: int) -> None:
        self.samples, self.done = samples, 0
        self.events: dict[str, list[_Event]] = {norm.name: [] for norm in self._norms}
        self.was_training = {norm.name: norm.module.training for norm in self._norms}
        self.statistics = {norm.name: _values(norm) for norm in self._norms}
        self.passes: list[int] = []
        self.noise: dict[str, set[bool]] = {}
        self.first = _weights(self._network)

    def end(self) -> None:
        self.last = _weights(self._network)

    def __enter__(self) -> _Recorder:
        handle = register_optimizer_step_post_hook(self._stepped)
        self._stack.callback(handle.remove)
        by_module: dict[int, list[Norm]] = {}
        for norm in self._norms:
            by_module.setdefault(id(norm.module), []).append(norm)
        for norms in by_module.values():
            self._wrap(norms[0].module, functools.partial(self._around_norms, norms))
        self._wrap(self._network, self._around_network)
        for name, module in self._noise.items():
            self._wrap(module, functools.partial(self._around_noise, name))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _wrap(self, module: nn.Module, around: Callable[..., Any]) -> None:
        inner = module.forward  # bound, whatever the instance has

        def forward(*args: Any, **kwargs: Any) -> Any:
            return around(module, inner, args, kwargs)

        vars(module)["forward"] = forward

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        groups = getattr(optimizer, "param_groups", ())
        if any(id(parameter) in self._parameters for group in groups for parameter in group["params"]):
            self.done += 1

    def _around_network(self, module: nn.Module, inner: Any, args: Any, kwargs: Any) -> Any:
        if not _in_backward():
            tensor = first_tensor((args, kwargs))
            if tensor is not None and tensor.dim():
                self.passes.append(len(tensor))
        return inner(*args, **kwargs)

    def _around_noise(self, name: str, module: nn.Module, inner: Any, args: Any, kwargs: Any) -> Any:
        self.noise.setdefault(name, set()).add(module.training)
        return inner(*args, **kwargs)

    def _around_norms(self, norms: list[Norm], module: nn.Module, inner: Any, args: Any, kwargs: Any) -> Any:
        before = [_values(norm) for norm in norms]
        training, weights = module.training, _weights(self._network)
        tensor = first_tensor((args, kwargs))
        read = [_moments(norm, tensor) for norm in norms]
        try:
            return inner(*args, **kwargs)
        finally:  # a recomputation stops by an exception as soon as it has what it needs
            again = _in_backward()
            for norm, old, (moments, values) in zip(norms, before, read, strict=True):
                updated = not all(map(torch.equal, old, _values(norm)))
                event = _Event(training, updated, again, self.done, weights, moments, values, norm.momentum)
                self.events[norm.name].append(event)

    # -- what was seen ------------------------------------------------------------------------------------

    def facts(self, moved: frozenset[str], trainable: frozenset[str]) -> StepFacts:
        norms = {n.name: self._norm_facts(n) for n in self._norms if self.events[n.name]}
        quiet = tuple(name for name, modes in self.noise.items() if modes == {False})
        piece = max(self.passes, default=None)
        return StepFacts(self.done, self.samples, piece, norms, moved, trainable, quiet)

    def _norm_facts(self, norm: Norm) -> NormUpdates:
        events = self.events[norm.name]
        # Of several steps of the optimiser in one call, the last that this norm had a part in.
        last = max((event.done for event in events if event.updated), default=0)
        updates = [event for event in events if event.updated and event.done == last]
        forward = [event for event in updates if not event.recomputed]
        perturbed = [event for event in updates if self._elsewhere(event, updates[0])]
        here = [event for event in forward if not any(event is other for other in perturbed)]
        pieces = len(here) if self._in_pieces(here) else 0
        again = sum(_same_moments(event, here[:number]) for number, event in enumerate(here)) if here else 0
        modes = {event.training for event in events}
        parameters = list(norm.module.parameters(recurse=False))
        drift = _drift(updates[0], perturbed[-1]) if perturbed else (None, None)
        return NormUpdates(
            name=norm.name,
            training=modes.pop() if len(modes) == 1 else None,
            was_training=self.was_training[norm.name],
            updates=len(updates),
            recomputed=sum(event.recomputed for event in updates),
            perturbed=len(perturbed),
            pieces=pieces,
            again=again,
            momentum=updates[-1].momentum if updates else norm.momentum,
            values=min((event.values for event in updates if event.values is not None), default=None),
            variance_ratio=drift[0],
            mean_offset=drift[1],
            trainable=any(p.requires_grad for p in parameters) if parameters else None,
            moved=not all(map(torch.equal, self.statistics[norm.name], _values(norm))),
        )

    def _elsewhere(self, event: _Event, first: _Event) -> bool:
        """Whether an update was made at weights to which the step went only for a look."""
        if torch.equal(event.weights, first.weights):
            return False
        if self.done:
            return True
        # Without an optimiser of torch's: a step of the user's own leads the way that the weights go on.
        there, whole = event.weights - first.weights, self.last - first.weights
        return float(torch.nn.functional.cosine_similarity(there, whole, dim=0)) < _UPHILL

    def _in_pieces(self, events: Sequence[_Event]) -> bool:
        count = len(events)
        if count < 2 or len(self.passes) < count or not self.samples:
            return False
        largest = max(self.passes)
        return largest * 4 <= self.samples * 3 and sum(self.passes) <= self.samples * 1.25 * _rounds(self)


def _rounds(recorder: _Recorder) -> int:
    """How often the step went through the batch: once for each step of the optimiser, at least once."""
    return max(recorder.done, 1)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _probe(parameter: Tensor) -> Tensor:
    """A few elements of a tensor, as they are now."""
    flat = parameter.detach().reshape(-1)
    stride = max(flat.numel() // _PROBED, 1)
    return flat[::stride].to("cpu", torch.float64, copy=True)


def _weights(network: nn.Module) -> Tensor:
    probes = [_probe(parameter) for parameter in network.parameters()]
    return torch.cat(probes) if probes else torch.zeros(0, dtype=torch.float64)


def _values(norm: Norm) -> list[Tensor]:
    return [state.tensor.detach().clone() for state in norm.own_states]


def _moments(norm: Norm, tensor: Tensor | None) -> tuple[tuple[Tensor, Tensor] | None, float | None]:
    """Mean and variance of each channel of a norm's input, and values per channel; None where unclear."""
    if tensor is None or not tensor.is_floating_point() or tensor.dim() < 2:
        return None, None
    axis = 1 if tensor.shape[1] == norm.channels else tensor.dim() - 1
    if tensor.shape[axis] != norm.channels or norm.per_sample:
        return None, None
    flat = tensor.detach().double().movedim(axis, 0).flatten(1)
    return (flat.mean(1), flat.var(1, correction=0)), float(flat.shape[1])


def _same_moments(event: _Event, earlier: Sequence[_Event]) -> bool:
    return any(_close(event, other) for other in earlier)


def _close(one: _Event, other: _Event) -> bool:
    if one.moments is None or other.moments is None:
        return False
    scale = other.moments[1].mean().sqrt() + 1e-12
    return bool((one.moments[0] - other.moments[0]).abs().max() < _SAME * scale)


def _drift(first: _Event, other: _Event) -> tuple[float | None, float | None]:
    """Ratio of the variances and offset of the means, from the weights of the step to the others."""
    if first.moments is None or other.moments is None:
        return None, None
    (mean, variance), (other_mean, other_variance) = first.moments, other.moments
    ratio = float(other_variance.mean() / variance.mean().clamp_min(1e-300))
    offset = float(((other_mean - mean).square() / variance.clamp_min(1e-12)).mean().sqrt())
    return (ratio, offset) if math.isfinite(ratio) and math.isfinite(offset) else (None, None)
