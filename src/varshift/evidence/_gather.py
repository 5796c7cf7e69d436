"""Gathers evidence: the kinds that are asked for and those that they are made from, each once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from varshift._errors import VarshiftError, strict
from varshift.evidence._capture import CaptureProvider
from varshift.evidence._history_given import HistoryProvider
from varshift.evidence._inputs import DeploymentProvider, InputsProvider
from varshift.evidence._loader import LoaderProvider
from varshift.evidence._measurement import MeasurementProvider
from varshift.evidence._modules import ModulesProvider
from varshift.evidence._noise_bias import NoiseBiasProvider
from varshift.evidence._norm_calls import NormCallsProvider
from varshift.evidence._optimizer import OptimizerProvider
from varshift.evidence._order import OrderProvider
from varshift.evidence._prediction import PredictionProvider
from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._reference import ReferenceProvider
from varshift.evidence._single import SingleProvider
from varshift.evidence._step import StepProvider
from varshift.evidence._subject import Subject
from varshift.evidence._trials import TrialsProvider
from varshift.evidence._types import KINDS, NOT_NEEDED, Evidence, EvidenceRun, Kind
from varshift.flow import CaptureMethod
from varshift.model import one_at_a_time, shadowed, short_message_of

# In the order in which they run: each after those that it needs or reads.
PROVIDERS: tuple[Provider, ...] = (
    LoaderProvider(),
    CaptureProvider(),
    PredictionProvider(),
    ModulesProvider(),
    TrialsProvider(),
    MeasurementProvider(),
    NoiseBiasProvider(),
    NormCallsProvider(),
    OrderProvider(),
    ReferenceProvider(),
    InputsProvider(),
    DeploymentProvider(),
    SingleProvider(),
    StepProvider(),
    OptimizerProvider(),
    HistoryProvider(),
)


class Gathering:
    """The evidence about one network, gathered in one or several goes.

    Attributes:
        evidence: What is known so far.
        limits: Sentences for the report on what could not be seen.
    """

    def __init__(self, subject: Subject) -> None:
        self.evidence = Evidence(intended=tuple(subject.intended))
        self.limits: list[str] = []
        self._subject = subject
        self._reasons: dict[Kind, str] = {}  # of every kind that was wanted: why it is not there, or nothing

    @property
    def capture_method(self) -> CaptureMethod:
        """How the network was captured; ``"hooks"`` where it was not."""
        captured = self._subject.captured
        return captured.method if captured else "hooks"

    def gather(self, kinds: Collection[Kind], later: Collection[Kind] = ()) -> None:
        """Makes what is not there yet of these kinds of evidence.

        Args:
            kinds: The kinds that are wanted; what they are made from is made too.
            later: Kinds that may be wanted in another go. A loader is gone through once only: where any batch
                is drawn now, as many are drawn as they would need.

        Raises:
            ModelError: If the network cannot be run on its inputs.
            DataError: If the loader yields nothing, or batches that cannot be used.
        """
        wanted = with_needs(kinds)
        todo = [p for p in PROVIDERS if p.kind in wanted and p.kind not in self._reasons]
        for provider in todo:
            self._reasons[provider.kind] = reason = self._obstacle(provider)
            if reason and (limit := provider.limit()):
                self.limits.append(limit)
        todo = [provider for provider in todo if not self._reasons[provider.kind]]
        if not todo:
            return
        for provider in todo:
            provider.require(self._subject)
        subject = self._subject
        with one_at_a_time, shadowed(subject.network, seed=subject.seed) as shadow, shadow, shadow:
            shadow.keep(subject.loader, subject.deploy)
            subject.shadow = shadow
            self.limits.extend(limit for limit in shadow.limits if limit not in self.limits)
            self._draw(todo, with_needs(later))
            for provider in todo:
                self._make(provider, wanted)

    def runs(self) -> tuple[EvidenceRun, ...]:
        """Of every kind, whether it was gathered and why not."""
        return tuple(
            EvidenceRun(kind, not (reason := self._reasons.get(kind, NOT_NEEDED)), reason) for kind in KINDS
        )

    def _obstacle(self, provider: Provider) -> str:
        reasons = (self._reasons[kind] for kind in provider.needs)
        return next(filter(None, reasons), "") or provider.obstacle(self._subject)

    def _draw(self, todo: list[Provider], later: frozenset[Kind]) -> None:
        subject = self._subject
        if subject.loader is None:
            return
        count = max((provider.batches(subject) for provider in todo), default=0)
        if count:
            possible = [provider.batches(subject) for provider in PROVIDERS if provider.kind in later]
            subject.draw(max([count, *possible]))
        if any(provider.deploys for provider in todo):
            subject.draw_deployed()

    def _make(self, provider: Provider, wanted: frozenset[Kind]) -> None:
        self._subject.shadow.fresh()
        try:
            fields = provider.make(self._subject, self.evidence, wanted, self.limits)
        except NotMade as answer:
            self._reasons[provider.kind] = str(answer)
        except Exception as error:  # whatever the network's own operations raise on other inputs
            if not provider.unknown or (strict() and not isinstance(error, VarshiftError)):
                raise
            own = error.__cause__ if isinstance(error, VarshiftError) else None
            self.limits.append(f"{provider.unknown} is not known: {short_message_of(own or error)}.")
            self._reasons[provider.kind] = "it failed"
        else:
            self.evidence = dataclasses.replace(self.evidence, **fields)


def with_needs(kinds: Collection[Kind]) -> frozenset[Kind]:
    """These kinds of evidence and all that they are made from."""
    wanted: set[Kind] = set(kinds)
    for provider in reversed(PROVIDERS):
        if provider.kind in wanted:
            wanted.update(provider.needs)
    return frozenset(wanted)
