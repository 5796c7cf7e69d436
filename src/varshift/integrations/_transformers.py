"""transformers: a callback of its Trainer."""

from __future__ import annotations

from typing import Any, Unpack

from transformers import TrainerCallback

from varshift import VarshiftError, Watch
from varshift.integrations._companion import Accompanied, Companion, Options


class VarshiftTrainerCallback(Accompanied, TrainerCallback):
    """Watches a training by transformers' Trainer; see `varshift.watch` for what it looks for.

    The watch is stepped after every piece of a batch (``gradient_accumulation_steps``) and after every step.
    The Trainer calls ``model.train()`` for every piece: norms that were put in evaluation mode to freeze them
    are in training mode again from the first on, and the watch says so. Figures go nowhere unless there is a
    `sink`.

    Args:
        watch: A watch to step instead of one for each training.
        options: The other arguments; see `varshift.integrations.Options`.

    Attributes:
        watch: The watch of the training that runs or ran last; None before the first.
        reports: Reports of the checks, in their order.
        report: Of the last check; without one, what the watch knows now.

    Example:
        >>> from varshift.integrations import VarshiftTrainerCallback  # doctest: +SKIP
        >>> callback = VarshiftTrainerCallback(check_at_end=True)  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # doctest: +SKIP
        >>> print(callback.report)  # doctest: +SKIP
    """

    def __init__(self, *, watch: Watch | None = None, **options: Unpack[Options]) -> None:
        super().__init__()
        self._companion = Companion(watch=watch, **options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins the watch."""
        # What accelerate wraps around the optimiser knows no more than the optimiser itself.
        optimizer = kwargs.get("optimizer")
        self._companion.begin(kwargs["model"], optimizer=getattr(optimizer, "optimizer", optimizer))

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes a step of the watch: a piece of a batch is done."""
        self._companion.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes a step of the watch: the optimiser made one."""
        self._companion.step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks the network where its turn is."""
        self._companion.epoch_ends(round(state.epoch or 0), kwargs["model"], kwargs.get("train_dataloader"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the watch, and checks what remains where that was asked."""
        self._companion.end()
        self._companion.ended(kwargs["model"], kwargs.get("train_dataloader"))


def attach(watch: Watch, host: Any) -> None:
    """Has a Trainer step a watch; for `Watch.attach`.

    Raises:
        VarshiftError: If the host is of transformers, and no Trainer.
    """
    if not callable(getattr(host, "add_callback", None)):
        raise VarshiftError(f"host is a {type(host).__name__}: pass a Trainer.")
    host.add_callback(VarshiftTrainerCallback(watch=watch))
