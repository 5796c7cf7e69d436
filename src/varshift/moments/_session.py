"""A captured network and its inputs: what its norms see at any rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from varshift._errors import ModelError
from varshift._sites import SiteId
from varshift.flow import Capture, Flow, NoiseSite
from varshift.model import find_norms, origins
from varshift.theory import noise_variance

from ._anchor import Anchor
from ._answers import Answers
from ._by_site import BySite
from ._clean_pass import CleanPass
from ._confidence import windows_of
from ._fields import made_up_input
from ._figures import average, learned_norms, norm_figures, prediction_limits
from ._interpreter import wide
from ._noise import multiplies
from ._outcome import Key, Outcome, Watch
from ._prediction import Method, Prediction
from ._train_pass import TrainPass, gated
from ._weights import Weights

_NORMS_USE: dict[str, Literal["running", "batch"]] = {"eval": "running", "clean": "batch"}


@dataclass
class Session:
    """A captured network with inputs; predicts for any rates.

    It keeps the weights of the network (see `Weights`), its two flows and the inputs, not the network.
    """

    weights: Weights
    captured: Capture
    train: Flow
    evaluation: Flow
    inputs: list[Tensor]
    real: bool
    seed: int
    anchors: Mapping[Key, Anchor] | None = None
    base: Outcome | None = None
    answers: Answers | None = None
    clean: frozenset[str] = frozenset()  # norms whose statistics were re-estimated without noise
    windows: Mapping[str, float] = field(default_factory=dict)  # see `windows_of`

    @classmethod
    def of(
        cls, network: nn.Module, captured: Capture, inputs: list[Tensor], *, real: bool, seed: int
    ) -> Session:
        """A session for a network as it is now.

        Raises:
            ModelError: If a mode of the network could not be captured.
        """
        train, evaluation = captured.train, captured.eval
        if train is None or evaluation is None:
            raise ModelError(f"both modes of the network are needed: {' '.join(captured.failures)}")
        norms = find_norms(network)
        session = cls(Weights(network), captured, train, evaluation, inputs, real, seed)
        session.clean = frozenset(origins(norms))
        session.windows = windows_of(norm for norm in norms if norm.name not in session.clean)
        return session

    @cached_property
    def gates(self) -> bool:
        """Whether the network has gates."""
        return gated(self.train)

    def predict(self, rates: Mapping[SiteId, float]) -> Prediction:
        """The prediction at the network's own rates, or at others with the gains of the first run."""
        changed = self._changed(rates)
        found = self.follow(changed)
        if self.base is None:
            self.anchors, self.base = found.anchors, found
        return self._prediction(found, changed)

    def answer(self, rates: Sequence[Mapping[SiteId, float]]) -> list[Prediction]:
        """Predictions for several sets of rates, from what was kept of the passes through the network."""
        changed = [self._changed(given) for given in rates]
        assert self.base is not None
        if self.answers is None:
            self.answers = Answers(self, self.base)
        return [
            self._prediction(found, given)
            for found, given in zip(self.answers.ask(changed), changed, strict=True)
        ]

    def follow(
        self,
        changed: Mapping[int, float],
        watch: Watch | None = None,
        states: Sequence[str] = tuple(_NORMS_USE),
        *,
        first: bool = False,
    ) -> Outcome:
        """Runs the pass in training, and one without noise for each of the states.

        Args:
            changed: Rates other than the network's, by noise site.
            watch: Is handed every pass before it runs.
            states: ``"eval"``, ``"clean"`` or both.
            first: Whether to find the gains of the anchors, and not to keep those of the first run.
        """
        failed: dict[str, str] = {}
        passes: dict[str, CleanPass] = {}
        with self._prepared() as (tensors, inputs):
            gains = self._clean_gains(tensors, inputs)
            train = TrainPass(
                self.train,
                tensors,
                inputs,
                made_up=not self.real,
                # Real data have their own size; made-up ones are put on that of the norms' statistics.
                trusted=frozenset() if self.real else learned_norms(self.train, tensors),
                rates=changed,
                frozen=None if first else self.anchors,
                clean=gains,
            )
            for state in ("train", *states):
                run = train
                if state != "train":
                    use, done = _NORMS_USE[state], next(iter(passes.values()), None)
                    run = CleanPass(self.evaluation, tensors, inputs, train.anchors, use)
                    run = passes[state] = run if done is None else done.other(use)
                if watch is not None:
                    watch(state, run)
                run.run()
                failed.update(run.failed)
        observed = {state: run.observed for state, run in passes.items()}
        return Outcome(train.anchors, observed, train.untreated, failed)

    def _clean_gains(self, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Mapping[Key, Tensor]:
        """Gains of the norms whose statistics were re-estimated without noise, from a pass without noise."""
        finder = CleanPass(self.evaluation, tensors, inputs, {}, "batch", self.clean)
        if self.clean:
            finder.run()
        if not self.real:
            return finder.gains
        return {key: torch.ones_like(gain) for key, gain in finder.gains.items()}  # data have their own size

    def _changed(self, rates: Mapping[SiteId, float]) -> dict[int, float]:
        places = enumerate(self.train.noises)
        changed = {place: rates[site.id] for place, site in places if site.id in rates}
        for place, rate in changed.items():
            _check_rate(self.train.noises[place], rate)
        return changed

    @contextmanager
    def _prepared(self) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """The network's tensors and the inputs, with random numbers from the seed."""
        tensors = {name: wide(tensor) for name, tensor in self.weights.tensors().items()}
        device = self.weights.device
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            inputs = [wide(x.to(device)) for x in self.inputs]
            yield tensors, inputs if self.real else [made_up_input(x) for x in inputs]

    def _prediction(self, found: Outcome, changed: Mapping[int, float]) -> Prediction:
        layers = norm_figures(self.train, found, real=self.real, gates=self.gates, windows=self.windows)
        rates = BySite(
            {
                site.id: changed.get(place, site.rate)
                for place, site in enumerate(self.train.noises)
                if site.rate is not None
            }
        )
        limits = prediction_limits(
            self.captured, self.train, found, layers, real=self.real, windows=self.windows
        )
        method: Method = "hybrid" if self.real else "anchored"
        predicted = {layer.name for layer in layers if layer.ratio is not None}
        clean = found.observed["clean"]
        statistics = {
            site.name: (
                average([clean[site.name, call].mean for call in range(len(site.calls))]),
                average([clean[site.name, call].variance for call in range(len(site.calls))]),
            )
            for site in self.train.norms
            if site.name in predicted and all((site.name, call) in clean for call in range(len(site.calls)))
        }
        return Prediction(layers, rates, method, limits, statistics, self)


def _check_rate(site: NoiseSite, rate: float) -> None:
    if multiplies(site):
        noise_variance(site.kind, rate)
    elif not rate >= 0:
        raise ValueError(f"rate={rate!r} of {site.name!r} must be at least 0.")
