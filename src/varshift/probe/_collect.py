"""Runs the batches of one process and collects the moments of its norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from varshift._errors import ModelError
from varshift.flow import RecognisedNorms, recognise_norms
from varshift.model import Call, Forward, Norm, Reader, Shadow, find_norms
from varshift.probe._distributed import Ranks
from varshift.probe._effect import HeldBack
from varshift.probe._leverage import LeverageWatch
from varshift.probe._loader import FiniteWatch, draw, model_device
from varshift.probe._pass import Progress, Stop, run_pass
from varshift.probe._states import frozen_norms, live_norms, measurable_norms, set_noise
from varshift.probe._tap import Tap
from varshift.probe._trial import try_readings
from varshift.probe._types import Leverage


class Collector:
    """Runs batches in the state `clean`, or `train`, and collects the moments of the norms' inputs.

    Args:
        user: The user's own network, which is only looked at.
        shadow: Stands in for it.
        forward: The user's function of model and batch.
        noise: Whether noise acts.
        frozen: Whether norms that the user froze are to be re-estimated, too.
        average: Whether moving averages are needed.
        stop: Decides when enough batches have run; None for all of them.

    Attributes:
        norms: The norms of the shadow that can be measured.
        live: Names of the norms that get new statistics.
        frozen: Names of those left alone because they are frozen, with how.
        held: The batches that were held back.
        sizes: Number of samples of each batch.
    """

    def __init__(
        self,
        user: nn.Module,
        shadow: Shadow,
        forward: Forward | None,
        *,
        noise: bool,
        frozen: bool,
        average: bool,
        stop: Stop | None,
    ) -> None:
        self._user, self._shadow, self._network, self._forward = user, shadow, shadow.network, forward
        self._noise, self._stop, self._average, self._series = noise, stop, average, stop is not None
        self._thaws = frozen
        self._watch = FiniteWatch()
        self._leverage = LeverageWatch()
        self._reader = Reader(self._network, forward)
        self.norms: tuple[Norm, ...] = ()
        self.live: frozenset[str] = frozenset()
        self.frozen: dict[str, str] = {}
        self.recognised: RecognisedNorms = {}
        self.tap = Tap((), "batch")
        self.held = HeldBack(None)
        self.sizes: list[int] = []

    @property
    def batches(self) -> int:
        """Number of batches that ran."""
        return len(self.sizes)

    @property
    def leverage(self) -> Leverage | None:
        """The sample or batch that dominates the statistics, if one does."""
        eps = {norm.name: float(getattr(norm.module, "eps", 0.0) or 0.0) for norm in self.norms}
        return self._leverage.leverage(self.sizes, self.live, eps)

    def run(
        self, loader: Iterable[Any], max_batches: int | None, ranks: Ranks, progress: Progress | None
    ) -> None:
        """Runs until the loader ends, the tolerance is reached, or a process fails.

        Processes meet only on the shared schedule of `Stop` and at the end, so their loaders may differ in
        length; one that is done, or has failed, still comes to each meeting.
        """
        batches = draw(loader, max_batches, model_device(self._network))
        total = _total(loader, max_batches)
        self.held = HeldBack(total if self._stop is None else None)
        done, failure, rounds = False, None, 0
        while True:
            rounds += 1
            meets = False if self._stop is None else self._stop.due(rounds)
            try:
                done = done or not self._step(batches)
                if done or meets:
                    self._watch.complain()
            except Exception as error:
                if not ranks.active:
                    raise
                done, failure = True, failure or error
            if progress is not None and not done:
                progress("recalibrating", self.batches, total)
            if done and (self._stop is None or not ranks.active):
                meets = True
            if not meets:
                continue
            states = ranks.flags(done, failure is not None)
            raise_failures(failure, [failed for _, failed in states])
            if self._stop is not None and self._stop.look(self.tap, ranks):
                return
            if all(finished for finished, _ in states):
                return

    def _step(self, batches: Iterator[tuple[int, Any]]) -> bool:
        """Runs the next batch; false when there is none."""
        number, batch = next(batches, (None, None))
        if number is None:
            return False
        self._watch.look(number, batch)
        if number == 0:
            several = len(self._reader.readings(batch)) > 1
            try_readings(self._shadow, self._reader, [batch], forward=self._forward, compares=several)
        call = self._reader.read(batch)
        if number == 0:
            self._prepare(call)
        run_pass(self._network, self._forward, call.copy(), self.tap, held=self.held.take(number, call))
        self.sizes.append(call.size)
        return True

    def _prepare(self, call: Call) -> None:
        self.recognised = recognise_norms(self._network, call, self._forward)
        self._shadow.fresh()
        self.norms = norms = measurable_norms(self._network, self.recognised)
        live, by_hand = live_norms(self._shadow, norms, self._forward, call)
        if self._thaws:
            # Of others only their own forward knows how they would learn.
            live |= {norm.name for norm in norms if not norm.overrides_forward}
        else:
            self.frozen = frozen_norms(self._user, find_norms(self._user, self.recognised))
        self.live, by_hand = live - self.frozen.keys(), by_hand - self.frozen.keys()
        self.tap = Tap(
            norms,
            "batch",
            live=self.live,
            average=self._average,
            series=self._series,
            leverage=self._leverage,
            holds_back=True,
        )
        set_noise(self._network, norms, self._noise, by_hand)


def _total(loader: Any, max_batches: int | None) -> int | None:
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return max_batches
    return length if max_batches is None else min(length, max_batches)


def raise_failures(mine: Exception | None, failed: list[bool]) -> None:
    """Raises the failure of this process, or says that another one failed."""
    if mine is not None:
        raise mine
    if any(failed):
        ranks = ", ".join(str(rank) for rank, bad in enumerate(failed) if bad)
        raise ModelError(f"recalibration failed on process {ranks}; nothing was changed on this one either.")
