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

from varshift._errors import ModelError, VarshiftError
from varshift.flow._build import build_flow
from varshift.flow._dispatch import dispatch_nodes
from varshift.flow._export import export_nodes
from varshift.flow._raw import RawNode
from varshift.flow._types import Capture, CaptureMethod, Flow
from varshift.model import (
    Forward,
    batch_size,
    canonical_names,
    copy_model,
    default_forward,
    map_tensors,
    message_of,
    move,
    place_of,
    shapes_of,
    short_message_of,
    switches_quietly,
    take_samples,
    unwrap,
)

Method = Literal["auto", "export", "dispatch"]
Mode = Literal["train", "eval"]
_SAMPLES = 2
_CHANCE = (
    "The model draws random numbers of Python or NumPy in {mode} mode; what they decide, such as skipping a "
    "layer, is not seen."
)


def capture(
    model: nn.Module,
    batch: Any,
    *,
    forward: Forward | None = None,
    method: Method = "auto",
    samples: int = _SAMPLES,
) -> Capture:
    """Captures a network in train and in eval mode, without touching it.

    Args:
        model: The network; wrappers of `torch.compile` and of data parallelism are looked through.
        batch: One batch as a loader yields it, or example inputs. A few samples of it are used.
        forward: How the model is called with a batch; see `varshift.model.default_forward`.
        method: ``"auto"`` exports and falls back to recording a real forward pass per mode, ``"export"``
            and ``"dispatch"`` use one of the two only.
        samples: How many samples of the batch to use; the shapes in the flows are for so many.

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
    lazy = next((name for name, value in _values(model) if torch.nn.parameter.is_lazy(value)), None)
    if lazy is not None:
        raise ModelError(
            f"the model has not set the shape of {lazy!r} yet: run it once on a batch first (lazy modules)."
        )
    return _Session(unwrap(model), batch, forward or default_forward, method, samples).run()


class _Refused(Exception):  # noqa: N818 - carries the error of a tracer or a model, is none itself
    def __init__(self, error: Exception, where: str = "") -> None:
        super().__init__(str(error))
        self.error = error
        self.where = where  # the innermost module at work, as ``'path' (Class)``


class _Session:
    """One capture: the model's copy, the batches to try, and what went wrong."""

    def __init__(self, model: nn.Module, batch: Any, forward: Forward, method: Method, samples: int) -> None:
        self._names = canonical_names(model)
        self._forward = forward
        self._method: Method = method
        self._original = model
        self._batch = batch
        first = next(iter((*model.parameters(), *model.buffers())), None)
        self._batches = _candidates(move(batch, first.device if first is not None else None), samples)
        self._copies: dict[str, nn.Module | Exception] = {}
        self._seconds = 0.0
        self._refused: dict[Mode, list[_Refused]] = {"train": [], "eval": []}  # the last of each batch
        self._worked: dict[Mode, int] = {}  # which of the batches

    def run(self) -> Capture:
        """Captures both modes."""
        with _quiet(), _random_state(), _whole_attention():
            train, evaluation = self._mode("train"), self._mode("eval")
        return self._result(train, evaluation)

    def _mode(self, mode: Mode) -> Flow | None:
        method = self._method
        methods: tuple[CaptureMethod, ...] = ("export", "dispatch") if method == "auto" else (method,)
        for number, batch in enumerate(self._batches):
            last = _Refused(ModelError("nothing was tried."))
            limits: list[str] = []
            for method in methods:
                try:
                    with self._model(method, limits) as model:
                        drawn = _random_position()
                        raw = self._trace(method, model, mode, batch)
                        if _random_position() != drawn:
                            limits.append(_CHANCE.format(mode=mode))
                        flow = build_flow(raw, model, self._names, mode, method, tuple(limits))
                        self._worked[mode] = number
                        return flow
                except _Refused as refused:
                    # Export refuses with many types, and a model may raise anything; both are reported.
                    last = refused
                    limits.append(
                        f"Export refused the model in {mode} mode: {short_message_of(refused.error)}."
                    )
            self._refused[mode].append(last)
        return None

    @contextlib.contextmanager
    def _model(self, method: CaptureMethod, limits: list[str]) -> Iterator[nn.Module]:
        """A copy to trace; export works on fake tensors, so its copy may share the values."""
        if method not in self._copies:
            try:
                share = method == "export" and switches_quietly(self._original)
                self._copies[method] = copy_model(self._original, share=share)
                if method == "export":
                    _fix_momentum(self._copies[method])
            except Exception as error:  # whatever a user's __deepcopy__ may raise
                self._copies[method] = error
        copied = self._copies[method]
        if isinstance(copied, nn.Module):
            yield copied
        elif method == "export":
            raise _Refused(copied)
        else:
            limits.append(
                f"The model cannot be copied ({short_message_of(copied)}): it was run itself, then restored."
            )
            with _restored(self._original):
                yield self._original

    def _trace(self, method: CaptureMethod, model: nn.Module, mode: Mode, batch: Any) -> list[RawNode]:
        tracer: Callable[..., list[RawNode]] = export_nodes if method == "export" else dispatch_nodes
        started = time.perf_counter()
        try:
            _ = model.train() if mode == "train" else model.eval()
            with torch.compiler.set_stance("force_eager"):
                return tracer(model, batch, self._forward, self._names)
        except Exception as error:
            raise _Refused(error, place_of(error, model, self._names)) from error
        finally:
            self._seconds += time.perf_counter() - started

    def _result(self, train: Flow | None, evaluation: Flow | None) -> Capture:
        if train is None and evaluation is None:
            refused = self._refused["eval"][-1]
            error = refused.error
            if isinstance(error, VarshiftError):
                raise error
            place = f", in {refused.where}" if refused.where else ""
            raise ModelError(
                f"the model cannot be run on the batch given ({shapes_of(self._batch)}{place}): "
                f"{message_of(error)}"
            ) from error
        failures = []
        if train is None:
            failures.append(self._failure("train", "eval", evaluation))
        if evaluation is None:
            failures.append(self._failure("eval", "train", train))
        return Capture(train, evaluation, self._seconds, tuple(failures))

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


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _fix_momentum(copied: Any) -> None:
    """Gives norms that average over all batches a momentum; they read a counter's value, export cannot.

    How the statistics are updated changes nothing of what is connected to what.
    """
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
            module.momentum = 0.1


def _candidates(batch: Any, samples: int) -> list[Any]:
    """Batches to try: a few samples are enough, but train mode wants more than one."""
    try:
        few = take_samples(batch, samples)
        if batch_size(batch) == 1:
            few = map_tensors(batch, _doubled)
        if few is None:
            return [batch]
    except Exception:  # a structure of the user's own that cannot be rebuilt
        return [batch]
    return [few, batch]


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor


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
def _whole_attention() -> Iterator[None]:
    """Switches off the path by which transformers run a whole layer as one operation in eval mode."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


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


def _random_position() -> tuple[Any, bytes, int]:
    """Where the random generators of Python and NumPy stand."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), int(state[2])


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
