"""From what the passes found at the norms to the figures of a prediction, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from varshift.flow import Capture, Flow, NoiseSite, NormSite, Ref, UnknownOperator, arguments_of

from ._confidence import confidence, few_updates
from ._outcome import Key, Outcome
from ._prediction import LayerPrediction, State
from ._train_pass import UNKNOWN

_GATED_FEW = 16  # samples below which what gates do is not known
_IMPLAUSIBLE = 1.3  # times the learned variance: without its noise a signal has less, and hardly ever more
_IMPOSSIBLE = 3.0  # times the learned variance: nothing is left of such a prediction
_DEAD = 1e-6  # of the average variance: channels below are no signal


def learned_norms(flow: Flow, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Norms whose statistics have been learned: not still exactly 0 and 1, finite, and positive."""
    found = set()
    for site in flow.norms:
        mean, variance = (_statistic(flow, site, name, tensors) for name in ("running_mean", "running_var"))
        if mean is None or variance is None:
            continue
        moved = bool((mean != 0).any() or (variance != 1).any())
        sound = bool(torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all())
        if moved and sound:
            found.add(site.name)
    return frozenset(found)


def _statistic(flow: Flow, site: NormSite, argument: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """What a norm is handed as its running mean or variance, be it a buffer, a parameter or an attribute."""
    try:
        given = arguments_of(flow.nodes[site.calls[0]]).get(argument)
    except UnknownOperator:
        given = None
    if isinstance(given, Ref):
        node = flow.nodes[given.index]
        if node.kind == "attribute" and isinstance(node.value, Tensor):
            return node.value
        if node.target:
            return tensors.get(node.target)
    return tensors.get(f"{site.name}.{argument}" if site.name else argument)


def norm_figures(
    flow: Flow, found: Outcome, *, real: bool, gates: bool, windows: Mapping[str, float]
) -> tuple[LayerPrediction, ...]:
    """The figures of all norms with running statistics; those that are not known have none.

    Args:
        flow: The network in train mode.
        found: What the passes found.
        real: Whether they followed real data.
        gates: Whether the network has gates.
        windows: Updates of a norm's statistics over the length of their moving average, where known.
    """
    layers: list[LayerPrediction] = []
    most = 0.0  # of what has been predicted at norms after operations without a rule
    for site in flow.norms:
        if not site.tracked:
            continue
        reason = _why_unknown(site, flow, found)
        if reason is not None:
            layers.append(_without_figures(site, flow, reason))
            continue
        layer, unruled = _figures(site, flow, found, real=real, gates=gates, windows=windows)
        if unruled:
            most = max(most, layer.ratio or 0.0, layer.local_ratio or 0.0)
        # What is wrong at one norm is so at all downstream.
        if layer.noise and most > _IMPOSSIBLE:
            layer = _without_figures(site, flow, "operations without a rule made its prediction impossible")
        elif layer.noise and most > _IMPLAUSIBLE:
            layer = replace(layer, confidence="low")
        layers.append(layer)
    return tuple(layers)


def _keys(site: NormSite, found: Outcome) -> list[Key]:
    """The calls of a norm that all passes followed."""
    keys = [(site.name, call) for call in range(len(site.calls))]
    return [
        key for key in keys if key in found.anchors and all(key in seen for seen in found.observed.values())
    ]


def _upstream(site: NormSite, flow: Flow) -> list[tuple[int, NoiseSite]]:
    return [(place, noise) for place, noise in enumerate(flow.noises) if site.name in noise.reaches]


def _why_unknown(site: NormSite, flow: Flow, found: Outcome) -> str | None:
    """Why a norm has no figures, None where it has."""
    keys = _keys(site, found)
    if not all(flow.nodes[call].has("batch_norm") for call in site.calls):
        return "it is not one batch-norm operation, and others are not followed"
    if not keys:
        return "an operation upstream could not be followed"
    upstream = _upstream(site, flow)
    untreated = next((noise for place, noise in upstream if place in found.untreated), None)
    if untreated is not None:
        return f"the noise of {str(untreated.id)!r} could not be followed"
    if upstream and any(UNKNOWN in found.anchors[key].doubts for key in keys):
        return "an operation upstream that carries noise could not be followed"
    figures = [figure for key in keys for figure in _values(key, found)]
    if not all(bool(torch.isfinite(figure).all()) for figure in figures):
        return "what reaches it is not finite"
    return None


def _without_figures(site: NormSite, flow: Flow, reason: str) -> LayerPrediction:
    return LayerPrediction(
        name=site.name,
        cls=site.cls,
        source=None if site.source is None else str(site.source),
        ratio=None,
        local_ratio=None,
        mean_offset=None,
        noise_share=None,
        states={},
        confidence="none",
        noise=tuple(noise.id for _, noise in _upstream(site, flow)),
        reason=reason,
    )


def _figures(
    site: NormSite, flow: Flow, found: Outcome, *, real: bool, gates: bool, windows: Mapping[str, float]
) -> tuple[LayerPrediction, bool]:
    """The figures of one norm, and whether its noise went through operations without a rule."""
    keys, observed = _keys(site, found), found.observed
    anchors = [found.anchors[key] for key in keys]
    seen = {state: [at[key] for key in keys] for state, at in observed.items()}
    learned = average([a.variance for a in anchors])
    centre = average([a.channels_mean for a in anchors])
    noise = average([a.noise for a in anchors])
    variance = {state: average([o.variance for o in calls]) for state, calls in seen.items()}
    mean = {state: average([o.mean for o in calls]) for state, calls in seen.items()}
    # A dead channel has no deviation that its mean could be off by.
    alive = learned > _DEAD * learned.mean()
    eps = max(anchor.eps for anchor in anchors)  # the norm adds it to every variance, so a ratio does
    offset = torch.where(alive, (mean["eval"] - centre) / (learned + eps).clamp_min(1e-20).sqrt(), 0.0)
    training = State(float(centre.mean()), float(learned.mean()))
    ratio, local = (
        float((variance[state].mean() + eps) / (learned.mean() + eps)) for state in ("eval", "clean")
    )
    if all(anchor.clean for anchor in anchors):  # what it holds is what it sees: nothing is left to correct
        ratio, offset = 1.0, torch.zeros_like(offset)
    upstream = _upstream(site, flow)
    # Noise that is not scaled makes a signal larger, too, but after operations without a rule it is an error.
    unruled = bool(upstream) and any(anchor.doubts for anchor in anchors)
    samples = site.shapes[0][0] if site.shapes and site.shapes[0] else 0
    few = bool(upstream) and gates and samples < _GATED_FEW
    mean_offset = float(offset.square().mean().sqrt())
    sure = confidence(
        site,
        [noise for _, noise in upstream],
        anchors,
        ratio=ratio,
        local_ratio=local,
        mean_offset=mean_offset,
        windows=windows.get(site.name),
        real=real,
    )
    layer = LayerPrediction(
        name=site.name,
        cls=site.cls,
        source=None if site.source is None else str(site.source),
        ratio=ratio,
        local_ratio=local,
        mean_offset=mean_offset,
        noise_share=float(noise.mean() / learned.mean()),
        states={
            "train": training,
            "clean": State(float(mean["clean"].mean()), float(variance["clean"].mean())),
            "sampling": training,
            "eval": State(float(mean["eval"].mean()), float(variance["eval"].mean())),
        },
        confidence="low" if few else sure,
        noise=tuple(noise.id for _, noise in upstream),
    )
    return layer, unruled


def _values(key: Key, found: Outcome) -> list[Tensor]:
    made = found.anchors[key]
    figures = [made.channels_mean, made.variance, made.noise]
    for observed in found.observed.values():
        figures += [observed[key].mean, observed[key].variance]
    return figures


def average(values: Sequence[Tensor]) -> Tensor:
    """Mean of figures per channel over the calls of a norm."""
    return torch.stack([value.double() for value in values]).mean(0)


def prediction_limits(
    captured: Capture,
    flow: Flow,
    found: Outcome,
    layers: Sequence[LayerPrediction],
    *,
    real: bool,
    windows: Mapping[str, float],
) -> tuple[str, ...]:
    """What could not be seen or followed, in plain sentences."""
    limits = list(captured.limits)
    for site in found.untreated.values():
        limits.append(
            f"The noise of {str(site.id)!r} could not be followed: norms that it reaches are not predicted."
        )
    for name, reason in found.failed.items():
        limits.append(
            f"The operation {name!r} could not be followed ({reason}): norms that noise reaches through it "
            "are not predicted."
        )
    new = [a.name for a in found.anchors.values() if not a.anchored]
    if new and not real:
        limits.append(
            f"{_counted(new)} not learned their statistics: there the size of the data is propagated, not "
            "known."
        )
    clean = list(dict.fromkeys(a.name for a in found.anchors.values() if a.clean))
    if clean:
        limits.append(
            f"{_counted(clean)} statistics that were re-estimated without noise: nothing is left to correct."
        )
    reached = [layer.name for layer in layers if layer.noise and layer.ratio is not None]
    lagging = [name for name in reached if few_updates(windows.get(name))]
    if lagging and not real:
        limits.append(
            f"{_counted(lagging)} statistics of few updates: while weights move, they are stale, and what "
            "is measured with them as they are may be far from the predicted ratios. Those are of statistics "
            "that fit the weights."
        )
    missing = [layer.name for layer in layers if layer.ratio is None]
    if missing:
        reasons = sorted({layer.reason or "" for layer in layers if layer.ratio is None})
        limits.append(f"{_counted(missing)} not been predicted: {'; '.join(reasons)}.")
    return tuple(dict.fromkeys(limits))


def _counted(names: Sequence[str]) -> str:
    """How many norms there are and which is the first, with its verb."""
    first = repr(names[0] or "(root)")
    return f"The norm {first} has" if len(names) == 1 else f"{len(names)} norms ({first}, ...) have"
