"""What several rules read out of the evidence: shifts, which norms learn, and names in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from varshift.evidence import Evidence
from varshift.theory import fold

from . import _thresholds as thresholds

if TYPE_CHECKING:
    from varshift._sites import SiteId
    from varshift.flow import Flow, NoiseSite
    from varshift.probe import LayerMeasurement

_KINDS = {
    "dropout": "dropout",
    "channel_dropout": "channel dropout",
    "alpha_dropout": "alpha dropout",
    "feature_alpha_dropout": "feature alpha dropout",
    "drop_path": "drop path",
    "drop_block": "drop block",
    "gaussian": "Gaussian noise",
    "uniform": "uniform noise",
    "attention_dropout": "attention dropout",
    "recurrent_dropout": "recurrent dropout",
    "weight_dropout": "weight dropout",
    "rrelu": "randomised leaky ReLU",
    "sampling": "sampling",
    "permutation": "a random permutation",
}
# A deep network has hundreds of noise sites upstream of a norm: the last few are named, all are counted.
NAMED = 3

_RATES = {"gaussian": "standard deviation", "uniform": "half-width"}


def positive(ratio: float | None) -> float | None:
    """The ratio where it is finite and above 0, else None."""
    return ratio if ratio is not None and math.isfinite(ratio) and ratio > 0 else None


def shift_of(ratio: float | None) -> float | None:
    """The ratio folded to at least 1; None where it is unknown, infinite or not positive."""
    return None if positive(ratio) is None else fold(ratio or math.inf)


def known(value: float | None) -> float | None:
    """The value where it is a finite number, else None, as strict JSON wants it."""
    return value if value is not None and math.isfinite(value) else None


def shift_severity(shift: float) -> Literal["error", "warning"] | None:
    """Severity of a folded shift, None below the warning."""
    if shift >= thresholds.SHIFT_ERROR:
        return "error"
    return "warning" if shift >= thresholds.SHIFT_WARNING else None


@dataclass(frozen=True, slots=True)
class Shift:
    """The variance shift measured at one norm.

    Attributes:
        layer: The measurement it comes from.
        never_moved: Whether the norm's statistics are still those of a new norm.
        excess: ``ratio / control_ratio``: the shift beyond what depth and batch size do without noise.
        noise: ``fresh_ratio / control_ratio``: the shift that the noise alone makes of fresh statistics.
        blamed: Folded part of the excess that the noise accounts for, at least 1. An excess that points the
            other way than the noise, or goes beyond it, comes from stale statistics. Statistics that never
            moved say nothing about the noise: for them it is what fresh ones would show.
    """

    layer: LayerMeasurement
    never_moved: bool
    excess: float
    noise: float
    blamed: float

    def words(self, name: str) -> str:
        """What is wrong at this norm, as a sentence without its full stop."""
        without = f"(without the noise: {self.layer.control_ratio:.3g})"
        if self.never_moved:
            return (
                f"Once it has learnt its statistics with the noise on, the norm {quoted(name)} sees "
                f"{self.layer.fresh_ratio:.3g} times the learned variance in evaluation {without}"
            )
        return (
            f"In evaluation the norm {quoted(name)} sees {self.layer.ratio:.3g} times the variance that it "
            f"holds {without}"
        )

    def evidence(self) -> dict[str, float | None]:
        """The figures, as a finding has them."""
        return {
            "ratio": known(self.layer.ratio),
            "control_ratio": known(self.layer.control_ratio),
            "excess": self.excess,
            "local_ratio": known(self.layer.local_ratio),
            "fresh_ratio": known(self.layer.fresh_ratio),
        }


def measured_shift(evidence: Evidence, name: str) -> Shift | None:
    """The shift at a norm, None when it was not measured there or is not a finite number."""
    layer = evidence.measured.get(name)
    if layer is None or not layer.reached:
        return None
    ratio, control, fresh = (
        positive(value) for value in (layer.ratio, layer.control_ratio, layer.fresh_ratio)
    )
    if ratio is None or control is None or fresh is None:
        return None
    excess, noise = ratio / control, fresh / control
    facts = evidence.norms.get(name)
    never_moved = facts is not None and facts.never_moved
    if never_moved:
        blamed = fold(noise)
    elif (excess < 1) == (noise < 1):
        blamed = min(fold(excess), fold(noise))
    else:
        blamed = 1.0
    return Shift(layer, never_moved, excess, noise, blamed)


def learns(evidence: Evidence, name: str) -> bool:
    """Whether a norm updates its statistics in training; a frozen one never learns the noise."""
    facts = evidence.norms.get(name)
    site = evidence.train_norms.get(name)
    return (facts is None or facts.live) and (site is None or site.batch_statistics)


def noise_upstream(flow: Flow | None) -> dict[str, tuple[SiteId, ...]]:
    """The names of all noise sites upstream of each norm, in order of execution."""
    names: dict[str, list[SiteId]] = {}
    for site in flow.noises if flow else ():
        name = site.id
        for norm in site.reaches:
            names.setdefault(norm, []).append(name)
    return {norm: tuple(sites) for norm, sites in names.items()}


def norms_in_order(evidence: Evidence) -> tuple[str, ...]:
    """Names of all norm modules: in order of execution, then those that no captured mode runs."""
    executed = [site.name for flow in (evidence.train, evidence.eval) if flow for site in flow.norms]
    return tuple(name for name in dict.fromkeys((*executed, *evidence.norms)) if name in evidence.norms)


def quoted(name: str) -> str:
    """A module path in a message."""
    return f"'{name}'" if name else "the model itself"


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    text = ", ".join(quoted(name) for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def others(names: Iterable[str], one: str, several: str) -> str:
    """How many more there are, with what they do: ``"2 more are stale: 'a', 'b'"``."""
    names = list(names)
    return f"{len(names)} more {one if len(names) == 1 else several}: {listed(names)}"


def so_with(names: Sequence[str]) -> str:
    """A sentence for all names but the first, of which the same was said; empty where there are none."""
    return f" So with {listed(names[1:])}." if len(names) > 1 else ""


def noise_words(site: NoiseSite) -> str:
    """A noise site in words: ``dropout at rate 0.5 in 'block.drop'``."""
    words = _KINDS.get(site.kind, "random noise")
    if site.rate is not None:
        words += f" at {_RATES.get(site.kind, 'rate')} {site.rate:.3g}"
    return f"{words} in {quoted(site.name)}"


def capitalised(sentence: str) -> str:
    """A sentence with its first letter in upper case."""
    return sentence[:1].upper() + sentence[1:]


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the entries that are not known."""
    return {key: value for key, value in values.items() if value is not None}
