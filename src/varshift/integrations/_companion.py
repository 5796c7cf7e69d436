"""What the callbacks of all hosts share: a watch that lasts as long as a training, and checks in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from varshift import Finding, Report, VarshiftError, VarshiftWarning, Watch, check, watch
from varshift.monitor import as_sink
from varshift.rules import resolve_selection


class Options(TypedDict, total=False):
    """Arguments of every callback, all of them optional.

    Attributes:
        every: Read the statistics at every n-th step, as in `varshift.watch`.
        check_every: Check the network after every n-th epoch; None (the default) for no such checks.
        check_at_end: Whether to check it when training ends.
        loader: Batches for checks and for re-estimated statistics; by default those that the host trains on.
        forward: Function of model and batch that runs the model, as in `varshift.check`.
        loss: Function of outputs and targets, as in `varshift.check`.
        max_batches: Batches of a check.
        reference: As in `varshift.watch`.
        sink: Where figures go, as in `varshift.watch`; some hosts have a default.
        on_finding: Called with each new finding instead of a warning.
        select: Codes or prefixes of the findings to look for.
        ignore: Codes or prefixes of those to leave out.
        strict: Whether what fails in varshift itself is raised; by default a warning says so, and training
            goes on.
    """

    every: int
    check_every: int | None
    check_at_end: bool
    loader: Iterable[Any] | None
    forward: Callable[[nn.Module, Any], Any] | None
    loss: Callable[[Any, Any], Any] | None
    max_batches: int
    reference: nn.Module | Sequence[nn.Module] | None
    sink: Any
    on_finding: Callable[[Finding], Any] | None
    select: Sequence[str] | None
    ignore: Sequence[str] | None
    strict: bool


class Companion:
    """Goes along with one training after another: makes a watch for each, steps it, checks between epochs.

    Args:
        watch: A watch that the user made, and ends; without one each training gets its own.
        every: See `Options`, as for all others.

    Attributes:
        watch: The watch of the training that runs, or ran last; None before the first.
        reports: Of the checks, in their order.
    """

    def __init__(
        self,
        *,
        watch: Watch | None = None,
        every: int = 1,
        check_every: int | None = None,
        check_at_end: bool = False,
        loader: Iterable[Any] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        max_batches: int = 16,
        reference: nn.Module | Sequence[nn.Module] | None = None,
        sink: Any = None,
        on_finding: Callable[[Finding], Any] | None = None,
        select: Sequence[str] | None = None,
        ignore: Sequence[str] | None = None,
        strict: bool = False,
    ) -> None:
        if check_every is not None and (not isinstance(check_every, int) or check_every < 1):
            raise VarshiftError(f"check_every={check_every!r} must be a whole number of epochs, or None.")
        # What is wrong with these comes up now, and not when training begins.
        resolve_selection(select, ignore)
        if sink is not None:
            as_sink(sink)
        self.watch, self._is_the_users = watch, watch is not None
        self.reports: list[Report] = []
        self.loader, self.forward, self.loss = loader, forward, loss
        self._check_every, self._check_at_end, self._max_batches = check_every, check_at_end, max_batches
        self._on_finding, self._strict, self._sink = on_finding, strict, sink
        self._watching: dict[str, Any] = {
            "every": every,
            "reference": reference,
            "on_finding": on_finding,
            "select": select,
            "ignore": ignore,
            "strict": strict,
        }
        self._saved: Mapping[str, Any] | None = None
        self._told: set[str] = set()

    def begin(self, model: nn.Module, *, optimizer: Any = None, sink: Any = None) -> None:
        """A training begins.

        Args:
            model: What it trains.
            optimizer: What trains it, where that is known.
            sink: Where figures go unless the user said so.
        """
        if self._is_the_users:
            return
        self.quit()
        self.watch = None
        sink = sink if self._sink is None else self._sink
        try:
            self.watch = watch(model, optimizer=optimizer, sink=sink, **self._watching)
            if self._saved is not None:
                self.watch.load_state_dict(self._saved)
        except Exception as error:
            self.complain("varshift does not watch this training", error)
        self._saved = None

    def step(self) -> None:
        """The model was updated, or a part of a batch was added to its gradients."""
        if self.watch is not None:
            self.watch.step()

    def epoch_ends(
        self, number: int, model: nn.Module, loader: Any, forward: Callable[..., Any] | None = None
    ) -> None:
        """An epoch ends: the network is checked where its turn is.

        Args:
            number: How many epochs are done.
            model: The network.
            loader: What the host trains on.
            forward: How the host runs it.
        """
        if self._check_every is not None and number % self._check_every == 0:
            self._check(model, loader, forward, f"after epoch {number}")

    def end(self) -> None:
        """The training ends: a last look."""
        if self.watch is not None and not self._is_the_users:
            self.watch.close()

    def ended(self, model: nn.Module, loader: Any, forward: Callable[..., Any] | None = None) -> None:
        """The training is over and the weights are those that remain: a last check where that was asked."""
        if self._check_at_end:
            self._check(model, loader, forward, "at the end of training")

    def quit(self) -> None:
        """The training failed or was stopped: the watch ends without a word."""
        if self.watch is not None and not self._is_the_users:
            self.watch.close(look=False)

    @property
    def report(self) -> Report | None:
        """That of the last check; without one, what the watch knows now."""
        if self.reports:
            return self.reports[-1]
        return None if self.watch is None else self.watch.report

    def state_dict(self) -> dict[str, Any]:
        """What the watch remembers, for a checkpoint."""
        return {} if self.watch is None else {"watch": dict(self.watch.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next training go on from a checkpoint."""
        self._saved = state.get("watch")

    def complain(self, what: str, error: Exception) -> None:
        """Says that something was not done; raises the error where the user wants that.

        A warning of ours that a filter made an error of is raised, too.
        """
        if self._strict or isinstance(error, VarshiftWarning):
            raise error
        text = f"{what}: {type(error).__name__}: {error}"
        warnings.warn(text, VarshiftWarning, stacklevel=4)

    def _check(self, model: nn.Module, loader: Any, forward: Callable[..., Any] | None, when: str) -> None:
        loader = loader if self.loader is None else self.loader
        if loader is None:
            text = f"varshift does not check {when}: the host has no loader of training data, pass loader=."
            warnings.warn(text, VarshiftWarning, stacklevel=4)
            return
        try:
            report = check(
                model,
                loader,
                forward=self.forward or forward,
                loss=self.loss,
                max_batches=self._max_batches,
                history=None if self.watch is None else self.watch.report,
                select=self._watching["select"],
                ignore=self._watching["ignore"],
            )
        except Exception as error:
            self.complain(f"varshift could not check {when}", error)
            return
        self.reports.append(report)
        self._tell(report, when)

    def _tell(self, report: Report, when: str) -> None:
        """Says what no check and not the watch said before."""
        known = {finding.code for finding in self.watch.findings} if self.watch is not None else set()
        new = [finding for finding in report.findings if finding.code not in known | self._told]
        self._told.update(finding.code for finding in new)
        if self._on_finding is not None:
            for finding in new:
                self._on_finding(finding)
            return
        for finding in new:
            if finding.severity != "advice":
                text = f"{finding.code} {when}: {finding.message} (varshift explain {finding.code})"
                warnings.warn(text, VarshiftWarning, stacklevel=5)


class Accompanied:
    """What callbacks show of the companion that they hold."""

    _companion: Companion

    @property
    def watch(self) -> Watch | None:
        """The watch of the training that runs or ran last; None before the first."""
        return self._companion.watch

    @property
    def reports(self) -> list[Report]:
        """Reports of the checks, in their order."""
        return self._companion.reports

    @property
    def report(self) -> Report | None:
        """Of the last check; without one, what the watch knows now."""
        return self._companion.report
