"""fastai: a callback of its Learner."""

from __future__ import annotations

from typing import Any, Unpack

from fastai.callback.core import Callback

from varshift import Report, VarshiftError, Watch
from varshift.integrations._companion import Companion, Options


class VarshiftLearnerCallback(Callback):
    """Watches what fastai's Learner fits; see `varshift.watch` for what it looks for.

    Each fit has a watch of its own, since ``fine_tune`` freezes and unfreezes between two of them. Searches
    for a learning rate are left out.

    Args:
        watch: A watch to step instead of one for each fit.
        options: The other arguments; see `varshift.integrations.Options`.

    Example:
        >>> from varshift.integrations import VarshiftLearnerCallback  # doctest: +SKIP
        >>> learner.fit_one_cycle(2, cbs=VarshiftLearnerCallback(check_at_end=True))  # doctest: +SKIP
    """

    run_valid = False

    def __init__(self, *, watch: Watch | None = None, **options: Unpack[Options]) -> None:
        super().__init__()
        self.companion = Companion(watch=watch, **options)

    @property
    def report(self) -> Report | None:
        """Of the last check; without one, what the watch knows now."""
        return self.companion.report

    def before_fit(self) -> None:
        """Begins the watch."""
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self, "gather_preds")
        if self.run:
            self.companion.begin(self.learn.model)

    def after_batch(self) -> None:
        """Takes a step of the watch."""
        self.companion.step()

    def after_epoch(self) -> None:
        """Checks the network where its turn is."""
        self.companion.epoch_ends(self.learn.epoch + 1, self.learn.model, self.learn.dls.train)

    def after_fit(self) -> None:
        """Ends the watch, and checks what remains where that was asked."""
        self.companion.end()
        self.companion.ended(self.learn.model, self.learn.dls.train)


def attach(watch: Watch, host: Any) -> None:
    """Has a Learner step a watch; for `Watch.attach`.

    Raises:
        VarshiftError: If the host is of fastai, and no Learner.
    """
    if not callable(getattr(host, "add_cb", None)):
        raise VarshiftError(f"host is a {type(host).__name__}: pass a Learner.")
    host.add_cb(VarshiftLearnerCallback(watch=watch))
