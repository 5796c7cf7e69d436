"""What `predict` returns: figures per norm, blame per noise site, and answers to "what if"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from varshift._sites import SiteId
from varshift.theory import fold

from ._by_site import BySite, SiteKey, by_site

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["anchored", "hybrid"]
Confidence = Literal["high", "medium", "low", "none"]
_GRID, _REFINEMENTS = 16, 2  # of the search for safe rates


@dataclass(frozen=True, slots=True)
class State:
    """Mean and variance of a norm's input in one state, both averaged over channels."""

    mean: float
    variance: float


@dataclass(frozen=True, slots=True)
class LayerPrediction:
    """What one norm will see. Figures that could not be predicted are None.

    Attributes:
        name: Module path of the norm, as in a report.
        cls: Its class name.
        source: ``"file:line"`` of its call, or None.
        ratio: Predicted ``ratio``: variance in the state `eval` over the variance that training produces; 1
            where the statistics are known to have been re-estimated without noise (`varshift.recalibrate`).
        local_ratio: Predicted ``local_ratio``: variance in `clean` over that in `train`.
        mean_offset: Root mean square over channels of the shift of the mean, in standard deviations.
        noise_share: Share of the variance in training that is noise.
        states: Mean and variance in ``"train"``, ``"clean"``, ``"sampling"`` and ``"eval"``.
        confidence: How far `ratio` may be off in nine norms of ten: ``"high"`` 3 %, ``"medium"`` 10 %;
            ``"low"`` where more, or where its error is not known; ``"none"`` where there are no figures.
            Measured ratios are meant whose statistics fit the weights (`fresh_ratio` of a report).
        noise: The noise sites upstream.
        reason: Why there are no figures; None where there are.
    """

    name: str
    cls: str
    source: str | None
    ratio: float | None
    local_ratio: float | None
    mean_offset: float | None
    noise_share: float | None
    states: Mapping[str, State]
    confidence: Confidence
    noise: tuple[SiteId, ...] = ()
    reason: str | None = None

    @property
    def shift(self) -> float | None:
        """``max(ratio, 1 / ratio)``; None without a ratio."""
        return None if self.ratio is None else fold(self.ratio)


class Source(Protocol):
    """What a prediction was made from."""

    def predict(self, rates: Mapping[SiteId, float]) -> Prediction:
        """The prediction at other rates, from passes through the network."""
        ...

    def answer(self, rates: Sequence[Mapping[SiteId, float]]) -> list[Prediction]:
        """Predictions at several sets of other rates, from what was kept of the first passes."""
        ...


@dataclass(frozen=True, repr=False)
class Prediction:
    """What every norm of a network will see, predicted.

    Noise sites go by their `SiteId`. Wherever one is asked for, its text (``"blocks.2:dropout#2"``) will do,
    and the path of its module (``"blocks.2"``) where the module has no other.

    For `what_if`, `blame` and `safe_rates` a prediction keeps the captured operations, its inputs and the
    weights of the network. The weights are shared with the network: once they have changed, questions that
    would have to read them again raise an error.

    Attributes:
        layers: One entry per norm with running statistics, in order of execution.
        rates: Rates of the noise sites, where they are known.
        method: ``"anchored"`` (made-up inputs, sizes from the norms' statistics) or ``"hybrid"`` (real data).
        limits: What could not be followed, in plain sentences.
        statistics: Mean and variance per channel of every norm's input in the state `clean`, by norm name:
            the running statistics that fit the deployed network.

    Example:
        >>> import torch, varshift as vs
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(16))
        >>> for _ in range(100):
        ...     _ = net(torch.randn(64, 16))
        >>> prediction = vs.predict(net, torch.randn(256, 16))
        >>> prediction.method, {str(site): rate for site, rate in prediction.rates.items()}
        ('hybrid', {'2:dropout': 0.5})
        >>> shares = prediction.blame()
        >>> round(shares["2"]["3"] - (prediction.layer("3").ratio - 1), 6)
        0.0
        >>> 0 < prediction.safe_rates(shift=1.1)["2"] < 0.2
        True
    """

    layers: tuple[LayerPrediction, ...]
    rates: BySite[float]
    method: Method
    limits: tuple[str, ...] = ()
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)
    _source: Source | None = field(default=None, repr=False, compare=False)

    def layer(self, name: str) -> LayerPrediction:
        """The prediction for one norm.

        Raises:
            KeyError: If there is no norm of this name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(
            f"no norm is called {name!r}: there are {', '.join(other.name for other in self.layers)}."
        )

    def what_if(self, rates: Mapping[SiteKey, float], *, exact: bool = False) -> Prediction:
        """The prediction with other rates, the weights and what they make of the data unchanged.

        It answers for norms that have learned their statistics anew with the other rates. The first question
        follows the network twice more, which costs about a prediction; what is kept of that, some figures per
        channel, answers it and all others.

        Args:
            rates: New rates by noise site; 0 switches a site off.
            exact: Whether to follow the network again at these rates: that costs a prediction each time.

        Raises:
            ValueError: If a site is unknown or a rate does not fit its kind.
            ModelError: If the weights have changed since the prediction was made.
        """
        asked = self._rates(rates)
        if exact:
            return self._origin().predict(asked)
        return self._answers([asked])[0]

    def blame(self) -> BySite[dict[str, float]]:
        """How much of every norm's shift each noise site is to blame for: ``blame()[site][norm]``.

        Every site that reaches a norm is switched off by itself; what that changes in the logarithm of the
        ratio is its part. What is left (sites act together) goes to the sites in proportion to the size of
        their parts, and the sum is brought to the scale of ``ratio - 1``: over all sites the shares add up to
        it. It asks `what_if` for each site. Norms without figures have no shares.
        """
        others = self._answers([{**self.rates, site: 0.0} for site in self.rates])
        shares: BySite[dict[str, float]] = BySite({site: {} for site in self.rates})
        ratios = {
            site: {layer.name: layer.ratio for layer in other.layers}
            for site, other in zip(self.rates, others, strict=True)
        }
        for layer in self.layers:
            if layer.ratio is None:
                continue
            changes = {
                site: math.log(layer.ratio / (without.get(layer.name) or layer.ratio))
                if site in layer.noise
                else 0.0
                for site, without in ratios.items()
            }
            whole, size = math.log(layer.ratio), sum(map(abs, changes.values()))
            left = whole - sum(changes.values())
            scale = (layer.ratio - 1) / whole if abs(whole) > 1e-9 else 1.0
            for site, change in changes.items():
                rest = left * abs(change) / size if size > 1e-9 else 0.0
                shares[site][layer.name] = scale * (change + rest)
        return shares

    def safe_rates(self, shift: float = 1.1) -> BySite[float]:
        """The largest rates, all sites scaled alike, that keep every norm under a shift.

        It asks `what_if` for a grid of scales, and for a finer one between the last that keeps every norm
        under the shift and the first that does not.

        Args:
            shift: Largest ``max(ratio, 1 / ratio)`` of any norm.

        Raises:
            ValueError: If `shift` is not above 1, or noise reaches a norm that could not be predicted.
        """
        if not shift > 1:
            raise ValueError(f"shift={shift!r} must be above 1: without any shift all rates are 0.")
        unknown = next((layer for layer in self.layers if layer.ratio is None and layer.noise), None)
        if unknown is not None:
            raise ValueError(
                f"no rates are known to be safe: the norm {unknown.name!r} has not been predicted, since "
                f"{unknown.reason}."
            )
        if self.worst is None or self.worst <= shift:
            return BySite(self.rates)
        low, high = 0.0, 1.0
        for _ in range(_REFINEMENTS):
            scales = [low + (high - low) * step / _GRID for step in range(1, _GRID)]
            answers = self._answers([self._scaled(scale) for scale in scales])
            high = next(
                (s for s, other in zip(scales, answers, strict=True) if (other.worst or 1.0) > shift), high
            )
            low = max((scale for scale in scales if scale < high), default=low)
        return self._scaled(low)

    @property
    def worst(self) -> float | None:
        """The largest shift of any norm that was predicted; None without one."""
        return max((layer.shift for layer in self.layers if layer.shift is not None), default=None)

    def _scaled(self, scale: float) -> BySite[float]:
        return BySite({site: scale * rate for site, rate in self.rates.items()})

    def _rates(self, rates: Mapping[SiteKey, float]) -> dict[SiteId, float]:
        return {**self.rates, **by_site(self.rates, rates)}

    def _origin(self) -> Source:
        if self._source is None:
            raise ValueError("this prediction was not kept together with its network: predict again.")
        return self._source

    def _answers(self, rates: Sequence[Mapping[SiteId, float]]) -> list[Prediction]:
        return self._origin().answer(rates) if rates else []

    def __repr__(self) -> str:
        worst = "nothing predicted" if self.worst is None else f"worst shift {self.worst:.3g}"
        counts = f"{len(self.layers)} norms, {len(self.rates)} noise sites"
        return f"Prediction(method={self.method!r}, {counts}, {worst})"

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=4)
        lines = [f"{'norm':{width}}  ratio  local  noise  confidence"]
        for layer in self.layers:
            figures = (
                f"{_figure(layer.ratio, '5.3f')}  {_figure(layer.local_ratio, '5.3f')}  "
                f"{_figure(layer.noise_share, '5.1%')}"
            )
            lines.append(f"{layer.name:{width}}  {figures}  {layer.confidence}")
        return "\n".join([*lines, *self.limits])


def _figure(value: float | None, form: str) -> str:
    return f"{'-':>5}" if value is None else format(value, form)
