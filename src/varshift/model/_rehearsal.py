"""A rehearsal: a training step of the user's, run on a copy of the model and of all that the step holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from varshift.model._copy import Uncopyable
from varshift.model._guard import Guard
from varshift.model._snapshot import Snapshot, _Walk, restore_each
from varshift.model._step_copy import StepCopier, Unsafe
from varshift.model._tensors import TensorCopier

_SIMPLE = (bool, int, float, str, type(None))
_FAR = 4


class Rehearsal(Guard):
    """Context in which a copy of a training step acts on a copy of a model.

    The step, a function of model and batch, may hold whatever it likes: optimisers of the model's parameters,
    schedulers, scalers, other models. All of it is copied as one, so that the copies belong together. Model,
    optimisers and random states of the user are watched besides, and put back at the end.

    Args:
        model: The user's model, unwrapped.
        step: The user's step.
        seed: Seeds all generators inside.

    Attributes:
        network: The copy of the model.
        step: The copy of the step.
        optimizers: The copies of the optimisers that hold parameters of the model and that the step holds.

    Raises:
        Unsafe: On entering, if the step cannot be run without a trace.
    """

    network: nn.Module
    step: Callable[[nn.Module, Any], Any]

    def __init__(self, model: nn.Module, step: Callable[..., Any], *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self._model, self._step = model, step
        self.optimizers: list[Optimizer] = []

    def touched(self) -> str | None:
        """What the step changed of the user's own, in a few words; None for nothing.

        Then it reaches the model in a way of its own, and what its copy did is not what it would have done.
        """
        for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
            if self._snapshot.wrote(tensor):
                return f"'{name}'"
        for name, module in self._model.named_modules():
            if _settings(module) != self._settings.get(id(module)):
                return f"a setting of '{name}'" if name else "a setting of the model"
        if any(state.changed() for state in self._walk.tensors.values()):
            return "the state of an optimizer"
        return None

    def _begin(self) -> None:
        super()._begin()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise Unsafe("is part of a distributed run")
        self.keep(self._step)
        model, copier = self._model, TensorCopier(lazily=True)
        self._settings = {id(module): _settings(module) for module in model.modules()}
        self._snapshot = Snapshot(model, copier)
        self._restores.append(self._snapshot.restore)
        own = {id(parameter): parameter for parameter in model.parameters()}
        optimizers = list(_optimizers_of(own))
        self._walk = _Walk(copier, [*own.values(), *model.modules()])
        self._walk.keep_all((vars(optimizer), _FAR) for optimizer in optimizers)
        self._restores.append(lambda: restore_each(self._walk.restores))
        copies = StepCopier(TensorCopier(lazily=True))
        try:
            self.network = copies.copy_model(model)
        except Uncopyable as error:
            raise Unsafe(f"belongs to a model that cannot be copied ({error})") from error
        try:
            self.step = copies.copy_step(self._step)
        except (Uncopyable, RecursionError) as error:
            raise Unsafe(f"cannot be copied ({error})") from error
        reached = _Walk(copier, [*own.values()])
        reached.keep_all((item, _FAR) for item in copies.globals)
        self._restores.append(lambda: restore_each(reached.restores))
        self.optimizers = copies.optimizers


def _optimizers_of(parameters: dict[int, Any]) -> Iterable[Optimizer]:
    """All optimisers of the process that hold one of these parameters, wherever they are."""
    for item in gc.get_objects():
        if issubclass(type(item), Optimizer) and any(
            id(parameter) in parameters
            for group in getattr(item, "param_groups", ())
            for parameter in group.get("params", ())
        ):
            yield item


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _SIMPLE)}
