"""`capture`: a model and one batch in, its two flows out."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from varshift._batches import Forward, batch_size, default_forward, map_tensors, move, take_samples
from varshift._errors import ModelError
from varshift.flow._build import build_flow
from varshift.flow._dispatch import dispatch_nodes
from varshift.flow._export import export_nodes
from varshift.flow._raw import RawNode
from varshift.flow._types import Capture, CaptureMethod, Flow
from varshift.flow._unwrap import canonical_names, copy_model, unwrap

Method = Literal["auto", "export", "dispatch"]
_SAMPLES = 2


def capture(
    model: nn.Module, batch: Any, *, forward: Forward | None = None, method: Method = "auto"
) -> Capture:
    """Captures a network in train and in eval mode, without touching it.

    Args:
        model: The network; wrappers of `torch.compile` and of data parallelism are looked through.
        batch: One batch as a loader yields it, or example inputs. A few samples of it are used.
        forward: How the model is called with a batch; see `varshift._batches.default_forward`.
        method: ``"auto"`` exports and falls back to recording a real forward pass per mode, ``"export"``
            and ``"dispatch"`` use one of the two only.

    Returns:
        Both flows; one is None when that mode could not be captured, and `Capture.failures` says why.

    Raises:
        ModelError: If the model runs in neither mode, or `method` is unknown.
        DataError: If the batch has a structure that `forward` cannot take.
    """
    if method not in ("auto", "export", "dispatch"):
        raise ModelError(f"method={method!r}: expected 'auto', 'export' or 'dispatch'.")
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is a {type(model).__name__}: expected a torch.nn.Module.")
    return _Session(unwrap(model), batch, forward or default_forward, method).run()


class _Session:
    """One capture: the model's copy, the batches to try, and what went wrong."""

    def __init__(self, model: nn.Module, batch: Any, forward: Forward, method: Method) -> None:
        self._names = canonical_names(model)
        self._forward = forward
        self._method = method
        self._original = model
        self._batch = batch
        self._seconds = 0.0
        self._errors: dict[str, Exception] = {}
        self._failures: list[str] = []

    def run(self) -> Capture:
        """Captures both modes."""
        with _quiet(), _random_state(), torch.compiler.set_stance("force_eager"):
            try:
                model = copy_model(self._original)
            except Exception as error:  # whatever a user's __deepcopy__ may raise
                return self._run_on_original(error)
            train, evaluation = self._both(model)
        return self._result(train, evaluation)

    def _run_on_original(self, error: Exception) -> Capture:
        reason = (
            f"The model cannot be copied ({_short(error)}), so it was run itself and restored afterwards."
        )
        self._method = "dispatch"
        with _restored(self._original):
            train, evaluation = self._both(self._original, (reason,))
        return self._result(train, evaluation)

    def _both(self, model: nn.Module, limits: tuple[str, ...] = ()) -> tuple[Flow | None, Flow | None]:
        first = next(iter((*model.parameters(), *model.buffers())), None)
        batch = move(self._batch, first.device if first is not None else None)
        batches = _candidates(batch)
        return (
            self._mode(model.train(), batches, "train", limits),
            self._mode(model.eval(), batches, "eval", limits),
        )

    def _mode(
        self, model: nn.Module, batches: list[Any], mode: Literal["train", "eval"], limits: tuple[str, ...]
    ) -> Flow | None:
        methods: tuple[CaptureMethod, ...] = (
            ("export", "dispatch") if self._method == "auto" else (self._method,)
        )
        for batch in batches:
            reasons: list[str] = []
            for method in methods:
                try:
                    raw = self._trace(method, model, batch)
                except Exception as error:
                    # Export refuses with many types, and a model may raise anything; both are reported.
                    self._errors[mode] = error
                    reasons.append(f"Export refused the model in {mode} mode: {_short(error)}.")
                    continue
                self._errors.pop(mode, None)
                used = reasons if method == "dispatch" else []
                return build_flow(raw, model, self._names, mode, method, (*limits, *used))
        self._failures.append(
            f"The model could not be captured in {mode} mode: {_short(self._errors[mode])}."
        )
        return None

    def _trace(self, method: CaptureMethod, model: nn.Module, batch: Any) -> list[RawNode]:
        tracer: Callable[..., list[RawNode]] = export_nodes if method == "export" else dispatch_nodes
        started = time.perf_counter()
        try:
            return tracer(model, batch, self._forward, self._names)
        finally:
            self._seconds += time.perf_counter() - started

    def _result(self, train: Flow | None, evaluation: Flow | None) -> Capture:
        if train is None and evaluation is None:
            error = self._errors["eval"]
            raise ModelError(
                f"the model cannot be run on the batch given ({_shapes(self._batch)}): {_message(error)}"
            ) from error
        return Capture(train, evaluation, self._seconds, tuple(self._failures))


def _candidates(batch: Any) -> list[Any]:
    """Batches to try: a few samples are enough, but train mode wants more than one."""
    try:
        few = take_samples(batch, _SAMPLES)
        if batch_size(batch) == 1:
            few = map_tensors(batch, _doubled)
    except Exception:  # a structure of the user's own that cannot be rebuilt
        return [batch]
    return [few, batch]


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor


def _shapes(batch: Any) -> str:
    found: list[str] = []
    map_tensors(batch, lambda tensor: found.append(str(tuple(tensor.shape))) or tensor)
    return "input shapes " + ", ".join(found) if found else f"a {type(batch).__name__} without tensors"


def _message(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    line = next((line for line in lines if line), "")
    line = line if len(line) <= 200 else line[:197] + "..."
    return f"{type(error).__name__}: {line}".rstrip(". :") if line else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what exporter and model print, log and warn about to themselves."""
    disabled = logging.root.manager.disable
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Leaves every random generator as it was."""
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restores training flags, buffers and parameters bit for bit."""
    flags = {module: module.training for module in model.modules()}
    slots = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
        for live, saved in slots:
            live.clear()
            live.update(saved)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
