"""Listens in on every norm of a running model and decides which statistics it uses, without touching it.

A norm's kernel computes batch statistics anyway when it normalises with them. The tap therefore stands
between the model and the kernel: it hands the kernel scratch buffers instead of the running statistics and
reads the batch moments from there, so that collecting them costs nothing and the model's own buffers are
never written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from varshift.model import FunctionMode, Norm, Place
from varshift.probe._bank import Bank
from varshift.probe._kernels import (
    READERS,
    NormCall,
    arranged,
    batch_moments,
    instance_moments,
    kernel_takes,
    like,
    rows_are_faster,
    run_batch_norm,
    run_instance_norm,
    sharpen,
)
from varshift.probe._leverage import LeverageWatch
from varshift.probe._listen import Listener
from varshift.probe._moments import Moments

Policy = Literal["batch", "running", "called"]
Statistics = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(slots=True)
class _Visit:
    """A norm module whose forward is running."""

    norm: Norm
    input: Tensor | None
    intercepted: bool = False
    kinds: Tensor | None = None
    row: int | None = None


class Tap(FunctionMode):
    """Function mode that takes over the calls of every known norm.

    Use it as a context around forward passes, and bracket each pass with `begin` and `end`.

    Args:
        norms: The model's norms.
        policy: ``"batch"`` to normalise the live norms with batch statistics, ``"running"`` to normalise all
            norms with running statistics, ``"called"`` to do as the model asks.
        live: Names of the norms that `policy="batch"` applies to; the others keep their running statistics.
        record: Whether to collect the moments of the norms' inputs.
        substitutes: Statistics to use in place of a norm's own, by norm name.
        average: Whether to keep moving averages.
        series: Whether to keep what standard errors need.
        leverage: Told of each batch, to find one that dominates the statistics.
        holds_back: Whether some batches are held back: the moments of the others are kept, too.

    Attributes:
        live: See above; may be set before the first pass.
        called: Names of the norms whose kernel was called.
        trained: Names of those whose caller asked for batch statistics.
        by_hand: Names of the norms that ran without calling a kernel.
        unread: Names of those among them whose input, or whose row of statistics, could not be told.
        smallest: Smallest number of values per channel that a call brought, by norm name.
    """

    def __init__(
        self,
        norms: Sequence[Norm],
        policy: Policy,
        *,
        live: frozenset[str] = frozenset(),
        record: bool = True,
        substitutes: Statistics | None = None,
        average: bool = False,
        series: bool = False,
        leverage: LeverageWatch | None = None,
        holds_back: bool = False,
    ) -> None:
        super().__init__()
        self._leverage = leverage
        self._norms = tuple(norms)
        self._by_mean = {id(norm.mean): norm for norm in norms if norm.mean_state is not None}
        self._policy, self.live, self._record = policy, live, record
        self._substitutes = dict(substitutes or {})
        # Norms written by hand reach no kernel that could be intercepted, norms that convert their statistics
        # before the call hand over a copy, and norms that stopped tracking hand over none while they train:
        # all are recognised by the module that runs.
        single = (torch.float32, torch.float64)
        self._hooked = [
            n for n in norms if n.kind == "custom" or n.spread.dtype not in single or not n.tracks
        ]
        self._banks = _banks(norms, average, series, holds_back) if record else []
        self._bank_of = {norm.name: bank for bank in self._banks for norm in bank.norms}
        self._visits: list[_Visit] = []
        self._listeners: list[Listener | None] = []
        self._handles: list[RemovableHandle] = []
        self.called: set[str] = set()
        self.trained: set[str] = set()
        self.by_hand: set[str] = set()
        self.unread: set[str] = set()
        self._chooses = any(norm.rows > 1 for norm in norms)
        self._counts: dict[str, Counter[str]] = {}
        self.smallest: dict[str, int] = {}

    # -- life of a pass ---------------------------------------------------------------------------------

    def __enter__(self) -> Tap:
        by_module: dict[nn.Module, list[Norm]] = {}
        for norm in self._hooked:
            by_module.setdefault(norm.module, []).append(norm)
        for module, norms in by_module.items():  # after hooks of the user's that change the input
            enter, leave = self._hooks(norms)
            self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            super().__enter__()
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(self, *args: Any) -> None:
        self._remove_hooks()
        super().__exit__(*args)

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, *, held: bool = False) -> None:
        """Starts a forward pass, of a batch that is held back or not."""
        self._visits.clear()
        self._listeners.clear()
        self._counts.clear()
        for bank in self._banks:
            bank.begin(held=held)
        if self._leverage is not None:
            self._leverage.begin()

    def end(self) -> None:
        """Ends a forward pass: its batch statistics join the accumulators."""
        if self._record:
            if self._leverage is not None:
                self._leverage.end(self._banks)
            for bank in self._banks:
                bank.end()

    # -- what was collected -----------------------------------------------------------------------------

    @property
    def moments(self) -> list[tuple[tuple[Norm, ...], Mapping[str, slice], Moments]]:
        """The accumulators, one per device and type, with the norms they belong to and their slices."""
        return [(bank.norms, bank.slices, bank.moments) for bank in self._banks]

    @property
    def rest(self) -> list[tuple[tuple[Norm, ...], Mapping[str, slice], Moments]]:
        """The accumulators of the batches that were not held back, likewise."""
        return [(bank.norms, bank.slices, bank.rest) for bank in self._banks if bank.rest is not None]

    @property
    def shared(self) -> frozenset[str]:
        """Names of the norms that were called several times within one pass."""
        return frozenset().union(*(bank.shared for bank in self._banks))

    def estimates(self, estimator: Literal["pooled", "ema"]) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and unbiased variance of each norm that saw at least two values per channel, on the host.

        Args:
            estimator: ``"pooled"`` over all values, or ``"ema"`` for moving averages over batches.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for bank in self._banks:
            moments = bank.moments
            mean, var = (moments.pool.mean, moments.pool.var) if estimator == "pooled" else moments.average()
            mean, var, count = mean.cpu(), var.cpu(), moments.pool.count.cpu()
            for norm in bank.norms:
                part = bank.slices[norm.name]
                if float(count[part].max()) > 1:
                    found[norm.name] = as_kept(norm, count[part], mean[part], var[part])
        return found

    # -- interception -----------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers the calls of known norms, passes all others on."""
        read = READERS.get(func)
        if read is None:  # nearly all calls, so the shortest way out
            if self._chooses and func in _CHOOSE and self._visits:
                self._note_choice(self._visits[-1], args)
            return func(*args, **kwargs) if kwargs else func(*args)
        call = read(*args, **(kwargs or {}))
        norm = self._identify(call)
        return func(*args, **(kwargs or {})) if norm is None else self._normalise(norm, call)

    def _identify(self, call: NormCall) -> Norm | None:
        norm = None if call.running_mean is None else self._by_mean.get(id(call.running_mean))
        visit = self._visits[-1] if self._visits else None
        if norm is not None:
            visit = next((visit for visit in reversed(self._visits) if visit.norm is norm), None)
        if visit is None:
            return norm
        if visit.norm.rows > 1:
            visit.row = _row_of(visit.norm, call.running_mean, visit.row)
        if call.running_mean is None:
            own = not visit.norm.tracks and call.input.shape[1:2] == (visit.norm.channels,)
        else:
            own = norm is visit.norm or call.running_mean.numel() == visit.norm.channels
        if own:
            visit.intercepted = True
            return visit.norm
        return norm

    def _normalise(self, norm: Norm, call: NormCall) -> Tensor:
        self.called.add(norm.name)
        if call.training:
            self.trained.add(norm.name)
        row = (self._visits[-1].row or 0) if norm.rows > 1 and self._visits else 0
        x, run = call.input, run_instance_norm if norm.per_sample else run_batch_norm
        count = self._note(norm, x)
        if self._leverage is not None:
            self._leverage.look(norm, x)
        if self._policy == "called":
            use_batch = call.training
        else:
            use_batch = self._policy == "batch" and norm.name in self.live
        if use_batch and (count <= 1 if norm.kind == "batch" else x[0, 0].numel() * (count > 0) <= 1):
            # One value has no variance to normalise with; the stored statistics are the best guess there.
            use_batch = norm.kind == "custom" and count > 1
        if self._record and count:
            mean_out, var_out = self._bank_of[norm.name].scratch(norm, count, row)
            if norm.per_sample:
                instance_moments(x, mean_out, var_out)
            elif use_batch and kernel_takes(call, mean_out.dtype) and not rows_are_faster(x):
                output = run_batch_norm(call, mean_out, var_out, training=True)
                sharpen(x, mean_out, var_out)
                return output
            else:
                batch_moments(x, mean_out, var_out)
                if use_batch and kernel_takes(call, mean_out.dtype):
                    biased = var_out * ((count - 1) / count)
                    return run_batch_norm(call, mean_out, biased, training=False)
        if use_batch:
            return run(call, None, None, training=True)
        mean, var = self._substitutes.get(norm.name, (call.running_mean, call.running_var))
        if norm.rows > 1 and norm.name in self._substitutes and mean is not None and var is not None:
            mean, var = (value.reshape(norm.rows, -1)[row] for value in (mean, var))
        return run(call, like(mean, call.running_mean), like(var, call.running_var), training=False)

    def _note(self, norm: Norm, x: Tensor) -> int:
        count = x.numel() // norm.channels
        if count:
            self.smallest[norm.name] = min(count, self.smallest.get(norm.name, count))
        return count

    def _hooks(self, norms: Sequence[Norm]) -> tuple[Callable[..., None], Callable[..., None]]:
        """What runs before and after the forward of a module with these norms."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (*args, *kwargs.values())
            x = next((item for item in values if isinstance(item, Tensor)), None)
            heard: dict[Place, Callable[[Tensor], None]] = {}
            for norm in norms:
                visit = _Visit(norm, x, kinds=_kinds(norm, values, x) if norm.rows > 1 else None)
                self._visits.append(visit)
                if not norm.states.own_input:
                    visit.input = None
                    places = norm.states.train_places if module.training else norm.states.eval_places
                    heard |= dict.fromkeys(places, partial(self._hear, visit))
            listener = None
            if any(not norm.states.own_input for norm in norms):
                listener = Listener(heard, self._counts.setdefault(norms[0].name, Counter()))
                listener.start()
            self._listeners.append(listener)

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not self._visits or self._visits[-1].norm is not norms[-1]:
                return
            listener = self._listeners.pop()
            if listener is not None:
                listener.stop()
            visits = [self._visits.pop() for _ in norms]
            for visit in reversed(visits):
                if not visit.norm.states.own_input:
                    self.by_hand.add(visit.norm.name)
                elif not visit.intercepted and visit.input is not None:
                    self.by_hand.add(visit.norm.name)
                    self._read(visit, visit.input)

        return enter, leave

    def _hear(self, visit: _Visit, signal: Tensor) -> None:
        if visit.intercepted:
            return
        visit.input = signal
        self._read(visit, signal)
        visit.input = None

    def _read(self, visit: _Visit, signal: Tensor) -> None:
        """Takes the moments of what a norm written by hand normalises."""
        norm = visit.norm
        x = arranged(signal, norm)
        if x is None or (norm.rows > 1 and visit.kinds is None and visit.row is None):
            self.unread.add(norm.name)
            return
        if not self._record:
            return
        x = x.detach()
        if self._leverage is not None:
            self._leverage.look(norm, x)
        if norm.rows == 1 or visit.kinds is None:
            rows = [(visit.row or 0, x)]
        else:
            kinds = visit.kinds.to(x.device)
            rows = [(int(row), x[kinds == row]) for row in kinds.unique().tolist()]
        for row, values in rows:
            if count := self._note(norm, values):
                outputs = self._bank_of[norm.name].scratch(norm, count, row)
                (instance_moments if norm.per_sample else batch_moments)(values, *outputs)

    def _note_choice(self, visit: _Visit, args: tuple[Any, ...]) -> None:
        """Notes which row of its statistics a norm reads."""
        norm = visit.norm
        if len(args) < 2 or not any(args[0] is state.tensor for state in norm.own_states):
            return
        choice = args[-1]
        if isinstance(choice, int) or (isinstance(choice, Tensor) and choice.numel() == 1):
            visit.row = int(choice) % norm.rows
        elif isinstance(choice, Tensor) and visit.kinds is None and visit.input is not None:
            visit.kinds = _kinds(norm, (choice,), visit.input)


_CHOOSE = frozenset(
    {Tensor.__getitem__, Tensor.select, torch.select, Tensor.index_select, torch.index_select}
)


def _kinds(norm: Norm, values: Iterable[Any], x: Tensor | None) -> Tensor | None:
    """The kind of each sample, where one of the values says so."""
    if x is None:
        return None
    fitting = [
        value
        for value in values
        if isinstance(value, Tensor)
        and not value.is_floating_point()
        and value.dtype is not torch.bool
        and value.shape == x.shape[:1]
        and value.numel()
        and int(value.min()) >= 0
        and int(value.max()) < norm.rows
    ]
    return fitting[0] if len(fitting) == 1 else None


def _row_of(norm: Norm, mean: Tensor | None, known: int | None) -> int | None:
    """The row that a statistic handed to a kernel is."""
    if mean is None or norm.mean_state is None:
        return known
    own = norm.mean_state.tensor
    if mean.untyped_storage().data_ptr() != own.untyped_storage().data_ptr():
        return known
    return (mean.storage_offset() - own.storage_offset()) // norm.channels


def as_kept(norm: Norm, count: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Moments as a norm keeps them: about zero without a mean, and its own where a row saw too few values."""
    if not norm.centred:
        mean, var = torch.zeros_like(mean), var * ((count - 1) / count.clamp_min(1)) + mean.square()
    if norm.rows == 1:
        return mean, var
    own_mean, own_var = (value.detach().reshape(-1).to(mean) for value in (norm.mean, norm.var))
    return torch.where(count > 1, mean, own_mean), torch.where(count > 1, var, own_var)


def _banks(norms: Sequence[Norm], average: bool, series: bool, holds_back: bool) -> list[Bank]:
    """One bank per device and type of statistics."""
    groups: dict[tuple[torch.device, torch.dtype], list[Norm]] = {}
    for norm in norms:
        dtype = torch.float64 if norm.spread.dtype == torch.float64 else torch.float32
        groups.setdefault((norm.mean.device, dtype), []).append(norm)
    return [
        Bank(group, device, dtype, average=average, series=series, holds_back=holds_back)
        for (device, dtype), group in groups.items()
    ]
