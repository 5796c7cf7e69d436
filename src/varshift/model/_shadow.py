"""The shadow: what passes run on in place of the user's model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varshift.model._compiled import calls_compiled
from varshift.model._copy import ModelCopier, Uncopyable
from varshift.model._guard import Guard
from varshift.model._snapshot import Snapshot
from varshift.model._tensors import copier_for
from varshift.model._unwrap import unwrap


class Shadow(Guard):
    """Context in which a model's stand-in can be run, written to and reset.

    The stand-in is a copy of the module tree. Weights of networks above 256 MB share their memory with the
    original until something writes to them. A model that cannot be copied is run itself and restored.

    Args:
        model: The model; compiled models and data-parallel wrappers are unwrapped.
        seed: Seeds all generators inside, so that what happens there can be repeated.
        resets: Whether `fresh` and `wrote` will be asked for, which needs a second copy of everything.

    Attributes:
        network: The network to run.
        limits: What a report should say about the copy.
    """

    network: nn.Module
    limits: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, *, seed: int | None = None, resets: bool = True) -> None:
        super().__init__(seed=seed)
        self._model, self._resets = unwrap(model), resets
        self._snapshot: Snapshot | None = None
        self._eager = False

    def fresh(self) -> nn.Module:
        """Resets everything that passes wrote since the shadow was made, and returns the network."""
        assert self._snapshot is not None
        assert self._resets
        self._snapshot.restore_model()
        return self.network

    def run_eagerly(self, *functions: Any) -> None:
        """Has compiled functions run as they were written, where network or functions call any.

        Compiled parts of the network are replaced in a copy. Functions compiled elsewhere cannot be: for
        these torch is told not to use compiled code until the end, which holds for all threads.
        """
        if not self._eager and calls_compiled(self.network, *functions):
            from torch._dynamo import eval_frame

            self._eager, before = True, eval_frame._stance
            self._restores.append(lambda: eval_frame._set_stance(before) and None)
            torch.compiler.set_stance("force_eager")

    def wrote(self, tensor: Tensor) -> bool:
        """Whether something wrote other values into a tensor of the network."""
        assert self._snapshot is not None
        assert self._resets
        return self._snapshot.wrote(tensor)

    def _begin(self) -> None:
        super()._begin()
        model = self._model
        copier = ModelCopier(copier_for(model))
        try:
            self.network = copier.copy_model(model)
            self.limits = _shared(copier.shared)
            left_alone = (*copier.shared, *copier.left_alone)
            self._snapshot = Snapshot(
                self.network, copier_for(model), left_alone, users_only=not self._resets
            )
            self._restores.append(self._snapshot.restore_users)  # the copy itself is needed no more
        except (Uncopyable, RecursionError) as error:
            self.network = model
            reason = str(error) or type(error).__name__
            self.limits = (f"The model cannot be copied ({reason}): it was run itself, then restored.",)
            self._snapshot = Snapshot(model, copier_for(model))
            self._restores.append(self._snapshot.restore)


def shadowed(model: nn.Module, *, seed: int | None = None, resets: bool = True) -> Shadow:
    """A context that gives a copy of a model to run, `Shadow.network`; see `Shadow`."""
    return Shadow(model, seed=seed, resets=resets)


def _shared(items: list[Any]) -> tuple[str, ...]:
    if not items:
        return ()
    names = ", ".join(sorted({type(item).__name__ for item in items}))
    return (
        f"The model holds what cannot be copied ({names}): passes used it as it is, and what they did to it "
        "remains.",
    )
