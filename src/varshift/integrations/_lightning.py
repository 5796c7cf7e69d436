"""Lightning: a callback that watches a fit, checks the network in it and has it validated as it should be.

Two copies of Lightning exist, ``lightning.pytorch`` and ``pytorch_lightning``. Trainers of either call the
callbacks of the other, so one class serves both.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from torch import nn

from varshift import Recalibration, VarshiftError, Watch, recalibrate
from varshift.integrations._companion import Accompanied, Companion, Options

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """The base class of callbacks, of the package that is loaded already or else of the one there is."""
    for name in _PACKAGES:
        if name in sys.modules:
            return sys.modules[name].Callback
    for name in _PACKAGES:
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ImportError("VarshiftCallback needs Lightning: pip install lightning")


class VarshiftCallback(Accompanied, _callback()):
    """Watches a fit of Lightning's trainer; see `varshift.watch` for what it looks for.

    The watch is stepped after every batch, so that pieces of a batch (``accumulate_grad_batches``) are told
    from steps of the optimiser. The sanity check is left out. Figures go to the trainer's loggers, at
    ``trainer.global_step``. What it remembers is kept in checkpoints. After an exception or Ctrl-C the fit
    ends as it would have without it, and nothing of it stays on the module.

    A check runs the module's ``forward`` on copies; a module that defines none is run by its
    ``training_step``, with nothing logged, unless it steps its optimisers by hand. Checks at the end see the
    weights that remain, averaged ones too.

    Args:
        watch: A watch to step instead of one for each fit.
        recalibrate: Number of batches with which the running statistics are re-estimated before each
            validation; after it the module has its own again, bit for bit. 0 for validation as usual. With
            ``WeightAveraging`` the averaged statistics are used: its weights come in later.
        options: The other arguments; see `varshift.integrations.Options`.

    Attributes:
        watch: The watch of the fit that runs or ran last; None before the first.
        reports: Reports of the checks, in their order.
        report: Of the last check; without one, what the watch knows now.

    Example:
        >>> from varshift.integrations import VarshiftCallback  # doctest: +SKIP
        >>> callback = VarshiftCallback(check_at_end=True)  # doctest: +SKIP
        >>> Trainer(max_epochs=2, callbacks=[callback]).fit(module, loader)  # doctest: +SKIP
        >>> print(callback.report)  # doctest: +SKIP
    """

    def __init__(
        self, *, watch: Watch | None = None, recalibrate: int = 0, **options: Unpack[Options]
    ) -> None:
        if isinstance(recalibrate, bool) or not isinstance(recalibrate, int) or recalibrate < 0:
            raise VarshiftError(f"recalibrate={recalibrate!r} must be a number of batches, or 0.")
        super().__init__()
        self._companion = Companion(watch=watch, **options)
        self._batches = recalibrate
        self._handle: Recalibration | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the watch remembers."""
        return self._companion.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Has the next fit go on from a checkpoint."""
        self._companion.load_state_dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins the watch."""
        optimizers = list(trainer.optimizers)

        def log(figures: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

        self._companion.begin(pl_module, optimizer=optimizers[0] if len(optimizers) == 1 else None, sink=log)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a step of the watch."""
        self._companion.step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Checks the network where its turn is."""
        self._companion.epoch_ends(
            trainer.current_epoch + 1, pl_module, trainer.train_dataloader, _forward_of(pl_module)
        )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Re-estimates the statistics where that was asked."""
        if self._batches == 0 or trainer.sanity_checking or (not trainer.training and not trainer.validating):
            return
        own = self._companion
        loader = trainer.train_dataloader if own.loader is None else own.loader
        try:
            self._handle = recalibrate(
                pl_module,
                loader,
                max_batches=self._batches,
                forward=own.forward or _forward_of(pl_module),
                loss=own.loss,
            )
        except Exception as error:
            own.complain("varshift could not re-estimate the statistics for validation", error)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Gives the module its own statistics back."""
        self._undo()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the watch."""
        self._companion.end()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Checks what remains, where that was asked."""
        self._companion.ended(pl_module, trainer.train_dataloader, _forward_of(pl_module))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Ends the watch without a word."""
        self._undo()
        self._companion.quit()

    def _undo(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.undo()


def attach(watch: Watch, host: Any) -> None:
    """Has a trainer step a watch; for `Watch.attach`.

    Raises:
        VarshiftError: If the host is of Lightning, and no trainer.
    """
    callbacks = getattr(host, "callbacks", None)
    if not isinstance(callbacks, list):
        raise VarshiftError(
            f"host is a {type(host).__name__}: pass a Trainer. In a loop of your own, as with Fabric, call "
            "step() after optimizer.step()."
        )
    callbacks.insert(0, VarshiftCallback(watch=watch))  # checkpoints are written by the last


def _forward_of(module: nn.Module) -> Callable[[nn.Module, Any], Any] | None:
    """How a check is to run a module that has no forward: by its training step. None for any other."""
    bases = [name for name in _PACKAGES if name in sys.modules]
    plain = {sys.modules[name].LightningModule.forward for name in bases}
    if type(module).forward not in plain or not getattr(module, "automatic_optimization", False):
        return None
    return _loss_of_training_step


def _loss_of_training_step(module: Any, batch: Any) -> Any:
    own = {name: vars(module)[name] for name in ("log", "log_dict") if name in vars(module)}
    # Nothing that a check runs belongs into the curves of the training.
    vars(module).update(log=_nothing, log_dict=_nothing)
    try:
        outputs = module.training_step(batch, 0)
    finally:
        del vars(module)["log"], vars(module)["log_dict"]
        vars(module).update(own)
    return outputs["loss"] if isinstance(outputs, Mapping) else outputs


def _nothing(*_: Any, **__: Any) -> None:
    return None
