"""Guards: random states and, where need be, a model are afterwards what they were, whatever happens."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from varshift._errors import VarshiftError
from varshift.model._interrupts import Holder, protected, release_signals, watch_signals
from varshift.model._random import keep_generators, keep_process_generators, seed_all
from varshift.model._snapshot import Snapshot
from varshift.model._tensors import copier_for

_Self = TypeVar("_Self", bound="Guard")

_FOLDERS = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (torch.__file__, os.path.dirname(__file__))
)

# The process's random states belong to one check at a time; others wait for their turn.
one_at_a_time = threading.RLock()


class FunctionMode(TorchFunctionMode):
    """A function mode whose end does not fail where an interrupt has taken it off the stack before."""

    def __exit__(self, *error: Any) -> None:
        depth = torch._C._len_torch_function_stack()
        if depth and torch._C._get_function_stack_at(depth - 1) is self:
            super().__exit__(*error)


class RestoreError(VarshiftError):
    """Something could not be put back."""


class Guard(Holder):
    """Puts things back at the end of a ``with`` block, the last one first, each on its own, whatever raises.

    Signals that arrive meanwhile (Ctrl-C) are delivered right after. Entering the same guard again inside
    itself does nothing but lead past its end once more: what an exception out of nowhere kept the inner end
    from putting back, the outer one does. `one_at_a_time` is held by those who call for all of that::

        with one_at_a_time, Guard(seed=0) as guard, guard:
            ...

    Args:
        seed: Seeds the process's generators inside, so that what happens there can be repeated.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._seed = seed
        self._depth = 0
        self._restores: list[Callable[[], None]] = []

    @protected
    def __enter__(self: _Self) -> _Self:
        self._depth += 1
        if self._depth == 1:
            try:
                watch_signals(self)
                self._begin()
            except BaseException:
                self._close()
                raise
        return self

    @protected
    def __exit__(self, *error: Any) -> None:
        try:
            _close_generators(error[1])
        finally:
            self._close()

    def __del__(self) -> None:
        if vars(self).get("_restores"):  # interrupts have kept every end of it from doing so
            self._close()

    def keep(self, *holders: Any) -> None:
        """Keeps the generators that these objects hold, and how far their samplers are."""
        for restore in keep_generators(*holders):
            self._restores.append(restore)

    def _begin(self) -> None:
        self._restores.append(_keep_thread_modes())
        for restore in keep_process_generators():
            self._restores.append(restore)
        if self._seed is not None:
            seed_all(self._seed)

    @protected
    def _close(self) -> None:
        errors: list[Exception] = []
        try:
            while self._restores:
                try:
                    self._restores[-1]()
                except Exception as error:
                    errors.append(error)
                self._restores.pop()
        finally:
            try:
                release_signals(self)
            finally:
                release_signals(self)
        if errors:
            first = errors[0]
            raise RestoreError(
                f"{len(errors)} of the things that were changed for a while could not be put back; the first "
                f"raised {type(first).__name__}: {first}. Build the model again to be sure of its state."
            ) from first


def _close_generators(error: BaseException | None) -> None:
    """Ends the context managers of torch and of varshift that an interrupt struck at their start or end.

    Such a manager is a generator that still waits. It would go on when the traceback is thrown away, long
    after the end of the guard, and put a mode of torch back that nobody takes off again.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            manager = trace.tb_frame.f_locals.get("self")
            trace = trace.tb_next
            if not isinstance(manager, contextlib._GeneratorContextManager):
                continue
            generator: Any = manager.gen
            if generator.gi_frame is not None and generator.gi_code.co_filename.startswith(_FOLDERS):
                with contextlib.suppress(Exception):
                    generator.close()
        error = error.__cause__ or error.__context__


def _keep_thread_modes() -> Callable[[], None]:
    """Notes the modes of this thread: an interrupt at the wrong moment skips the end of a ``with``."""
    gradients = torch.is_grad_enabled()
    functions, dispatches = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()

    def restore() -> None:
        while torch._C._len_torch_dispatch_stack() > dispatches:
            top = torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1)
            top.__exit__(None, None, None)
        while torch._C._len_torch_function_stack() > functions:
            top = torch._C._get_function_stack_at(torch._C._len_torch_function_stack() - 1)
            top.__exit__(None, None, None)
        if torch.is_grad_enabled() != gradients:
            torch._C._set_grad_enabled(gradients)

    return restore


class preserved(Guard):  # noqa: N801 - used as a function
    """Restores a model and all global random states on the way out, also on errors.

    Args:
        model: The model, run inside as it is.
        seed: Seeds all generators inside, so that what happens there can be repeated.
    """

    def __init__(self, model: nn.Module, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self._model = model
        self.snapshot: Snapshot | None = None

    def _begin(self) -> None:
        super()._begin()
        self.snapshot = Snapshot(self._model, copier_for(self._model))
        self._restores.append(self.snapshot.restore)
