"""`capture`: a model and one batch in, its two flows out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from varshift._errors import ModelError, VarshiftError
from varshift.flow._build import Traced, build_flows
from varshift.flow._recorder import BeforeWrite, Recording, Tier, record
from varshift.flow._types import Capture, CaptureMethod, Flow, Mode
from varshift.model import (
    Call,
    Forward,
    canonical_names,
    clone,
    model_failure,
    one_at_a_time,
    place_of,
    read_call,
    shadowed,
    shapes_of,
    short_message_of,
    unwrap,
)

_SAMPLES = 2
_CHANCE = (
    "The model draws random numbers of Python or NumPy in {mode} mode; what they decide, such as skipping a "
    "layer, is not seen."
)
_DECOMPOSED = (
    "The forward computes gradients in {mode} mode ({error}): composite operations were recorded as the "
    "steps that autograd makes of them."
)
_METHODS: dict[Tier, CaptureMethod] = {"whole": "recorded", "gradients": "decomposed"}


def capture(
    model: nn.Module,
    batch: Any,
    *,
    forward: Forward | None = None,
    samples: int = _SAMPLES,
) -> Capture:
    """Captures a network in train and in eval mode, without touching it.

    Every mode takes one forward pass of a copy, whose operations are recorded as they run, and a second one
    where Python's own random numbers were drawn in it.

    Args:
        model: The network; wrappers of `torch.compile` and of data parallelism are looked through.
        batch: One batch as a loader yields it or as a `Call`, or example inputs. A few samples are used.
        forward: How the model is called with a batch; by default see `varshift.model.Reader`.
        samples: How many samples of the batch to use; the shapes in the flows are for so many.

    Returns:
        Both flows; one is None when that mode could not be captured, and `Capture.failures` says why.

    Raises:
        ModelError: If the model runs in neither mode.
        DataError: If the batch has a structure that `forward` cannot take.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is a {type(model).__name__}: expected a torch.nn.Module.")
    network = unwrap(model)
    _require_shapes(network)
    with one_at_a_time, shadowed(network, resets=False) as shadow, shadow, shadow:
        return _Session(shadow.network, batch, forward, samples, shadow.limits, None).run()


def capture_in_place(
    network: nn.Module,
    batch: Any,
    *,
    forward: Forward | None = None,
    samples: int = _SAMPLES,
    before_write: BeforeWrite | None = None,
) -> Capture:
    """Captures a network by running that very module: for one that may be run and written to.

    Its modes are switched, its state is updated as a forward pass updates it, and random numbers are drawn.

    Args:
        network: The module to run.
        batch: As for `capture`; its tensors are copied, so that a forward cannot write to them.
        forward: As for `capture`.
        samples: As for `capture`.
        before_write: Called with every tensor that an operation may write to, before it runs. What was
            written is in `Flow.written` and `Flow.writes_input`.

    Returns:
        As `capture`.

    Raises:
        ModelError: If the model runs in neither mode.
        DataError: If the batch has a structure that `forward` cannot take.
    """
    _require_shapes(network)
    return _Session(network, batch, forward, samples, (), before_write).run()


class _Refused(Exception):  # noqa: N818 - carries the error of a model, is none itself
    def __init__(self, error: Exception, where: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.where = where  # the innermost module at work, as ``'path' (Class)``


class _Session:
    """One capture: the batches to try, and what went wrong."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        forward: Forward | None,
        samples: int,
        limits: tuple[str, ...],
        before_write: BeforeWrite | None,
    ) -> None:
        self._model = model
        self._names = canonical_names(model)
        call = read_call(model, batch, forward)
        self._forward = lambda model, batch: call.with_batch(batch).run(model, forward)
        self._batch = call.batch
        self._limits = limits
        self._before_write = before_write
        first = next(iter((*model.parameters(), *model.buffers())), None)
        self._batches = _candidates(call.to(first.device if first is not None else None), samples)
        self._refused: dict[Mode, list[_Refused]] = {"train": [], "eval": []}  # the last of each batch
        self._worked: dict[Mode, int] = {}  # which of the batches

    def run(self) -> Capture:
        """Captures both modes."""
        modes: tuple[Mode, Mode] = ("train", "eval")
        traced: dict[Mode, Traced] = {}
        for mode in modes:
            if (one := self._mode(mode)) is not None:
                traced[mode] = one
        flows = build_flows(traced, self._model, self._names)
        return self._result(flows.get("train"), flows.get("eval"))

    def _mode(self, mode: Mode) -> Traced | None:
        for number, batch in enumerate(self._batches):
            try:
                traced = self._tiers(mode, batch)
            except _Refused as refused:
                self._refused[mode].append(refused)
            else:
                self._worked[mode] = number
                return traced
        return None

    def _tiers(self, mode: Mode, batch: Any) -> Traced:
        drawn = _random_position()
        limits = list(self._limits)
        tier: Tier = "whole"
        try:
            recording = self._record(mode, batch, tier)
        except _Refused as refused:
            tier = "gradients"
            recording = self._record(mode, batch, tier)
            limits.append(_DECOMPOSED.format(mode=mode, error=short_message_of(refused.error)))
        by_chance = _random_position() != drawn
        if by_chance:
            limits.append(_CHANCE.format(mode=mode))
            recording = self._record(mode, batch, tier, host_draws=True)
        return Traced(recording, _METHODS[tier], tuple(limits), by_chance)

    def _record(self, mode: Mode, batch: Any, tier: Tier, *, host_draws: bool = False) -> Recording:
        try:
            _ = self._model.train() if mode == "train" else self._model.eval()
            return self._pass(batch, tier, host_draws)
        except Exception as error:  # whatever a model may raise
            raise _Refused(error, place_of(error, self._model, self._names)) from error

    def _pass(self, batch: Any, tier: Tier, host_draws: bool) -> Recording:
        def run() -> Recording:
            own = clone(batch)
            return record(
                self._model,
                own,
                self._forward,
                self._names,
                tier=tier,
                before_write=self._before_write,
                host_draws=host_draws,
            )

        try:
            return run()
        except Exception as error:
            if not _compiled(error):
                raise
            with torch.compiler.set_stance("force_eager"):  # for all threads: only where nothing else helps
                return run()

    def _result(self, train: Flow | None, evaluation: Flow | None) -> Capture:
        if train is None and evaluation is None:
            error = self._refused["eval"][-1].error
            if isinstance(error, VarshiftError):
                raise error
            raise model_failure(error, self._model, self._batch, names=self._names) from error
        failures = []
        if train is None:
            failures.append(self._failure("train", "eval", evaluation))
        if evaluation is None:
            failures.append(self._failure("eval", "train", train))
        return Capture(train, evaluation, tuple(failures))

    def _failure(self, mode: Mode, other: Mode, flow: Flow | None) -> str:
        """Why a mode could not be captured: its error on the batch on which the other mode ran."""
        number = self._worked[other]
        refused = self._refused[mode][number]
        place = f", in {refused.where}" if refused.where else ""
        text = (
            f"The model could not be captured in {mode} mode ({shapes_of(self._batches[number])}{place}): "
            f"{short_message_of(refused.error)}."
        )
        path = refused.where.split("'")[1] if refused.where else ""
        if path and flow is not None and not any(_inside(node.module, path) for node in flow.nodes):
            text += f" In {other} mode it runs, without this part, which may need larger or more inputs."
        return text


def _inside(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")


def _require_shapes(model: nn.Module) -> None:
    lazy = next((name for name, value in _values(model) if torch.nn.parameter.is_lazy(value)), None)
    if lazy is not None:
        raise ModelError(
            f"the model has not set the shape of {lazy!r} yet: run it once on a batch first (lazy modules)."
        )


def _compiled(error: BaseException) -> bool:
    """Whether an error was raised by the compiler."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("torch._dynamo"):
            return True
        trace = trace.tb_next
    return False


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _candidates(call: Call, samples: int) -> list[Any]:
    """Batches to try: a few samples are enough, one may have to be, but train mode wants more than one."""
    try:
        if call.size == 1:
            return [call.map(_doubled).batch, call.batch]
        candidates = [call.take(samples), call.take(1), call]
        return [candidate.batch for candidate in candidates if candidate is not None]
    except Exception:  # a structure of the user's own that cannot be rebuilt
        return [call.batch]


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor


def _random_position() -> tuple[Any, bytes, int]:
    """Where the random generators of Python and NumPy stand."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), int(state[2])
