"""Understanding the disharmony between dropout and batch normalization by variance shift.

X. Li, S. Chen, X. Hu, J. Yang, arXiv 1801.05134 (2018): the tables and figures of that version; those of CVPR
2019 could not be read. Table 5 (ImageNet) is left out: the paper does not say how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import torch

from varshift_lab import networks
from varshift_lab.recipes import _variance_shift_figures as stated
from varshift_lab.recipes._variance_shift_claims import claims
from varshift_lab.recipes._variance_shift_measures import PICTURES
from varshift_lab.recipes._variance_shift_plan import FOLLOWED, Subject, cells, plan, trials
from varshift_lab.studies import Curve, Figure, Panel, PaperFigure, Recipe, Row, Scale, Series, Table
from varshift_lab.training import DataChoice, Network


def table1(scale: Scale) -> Table:
    """Table 1: how far filters point along the vector of ones, without dropout."""
    rows = []
    for label, data, subject in cells(scale):
        suffix = "_branches" if subject.name == "PreResNet" else ""
        run = trials(scale, subject, data, 0.0)
        series = [Series(run, f"{name}{suffix}") for name in ("cos2", "d_cos2")]
        for what, one, values in zip(("cos^2", "d cos^2"), series, stated.TABLE1, strict=True):
            rows.append(
                Row((label, subject.name, what), one, _stated(scale, values, label, subject, stated.LAYERS))
            )
    return Table(
        "table1",
        "Table 1: squared cosine between filters and the vector of ones, networks without dropout",
        ("data", "network", "figure"),
        "mean over convolutions",
        tuple(rows),
        plan(scale).note,
    )


def table3(scale: Scale) -> Table:
    """Table 3: dropout 0.5 at (a) and (b), with the statistics of training and with adjusted ones."""
    rows = []
    for label, data, subject in cells(scale, everything=True):
        for placement in ("a", "b"):
            run = trials(scale, subject, data, 0.5, placement)
            for statistics, quantity in (("of training", "test_error"), ("adjusted", "adjusted_test_error")):
                values = stated.TABLE3[placement, statistics]
                rows.append(
                    Row(
                        (label, subject.name, f"({placement})", statistics),
                        Series(run, quantity),
                        _stated(scale, values, label, subject, stated.FIVE_SEEDS),
                    )
                )
    return Table(
        "table3",
        "Table 3: dropout 0.5 before and after the statistics are adjusted",
        ("data", "network", "dropout", "statistics"),
        "test error, %",
        tuple(rows),
        plan(scale).note,
    )


def table4(scale: Scale) -> Table:
    """Table 4: one dropout in front of the last layer, behind all norms."""
    return _mild(
        scale,
        "table4",
        "Table 4: one dropout in front of the last layer",
        "drop ratio",
        stated.TABLE4,
        placement="last",
        noise="dropout",
    )


def table6(scale: Scale) -> Table:
    """Table 6: Uout in the places of Dropout-(b)."""
    return _mild(
        scale,
        "table6",
        "Table 6: Uout, uniform noise of half-width beta, in the places of Dropout-(b)",
        "beta",
        stated.TABLE6,
        placement="b",
        noise="uniform",
    )


def _mild(
    scale: Scale, name: str, title: str, heading: str, values: stated.ByRate, *, placement: str, noise: str
) -> Table:
    rows = []
    for label, data, subject in cells(scale):
        for rate in plan(scale).mild_rates:
            rows.append(
                Row(
                    (label, subject.name, f"{rate:g}"),
                    Series(trials(scale, subject, data, rate, placement, noise), "test_error"),
                    _stated(scale, values[rate], label, subject, stated.FIVE_SEEDS),
                )
            )
    return Table(name, title, ("data", "network", heading), "test error, %", tuple(rows), plan(scale).note)


def first_norm(scale: Scale) -> Table:
    """The shift of the first norm behind a dropout, beside theory's least value: a check of the protocol."""
    rows = []
    for label, data, subject in cells(scale):
        for rate in plan(scale).rates:
            if rate:
                rows.append(
                    Row(
                        (label, subject.name, f"{rate:g}", f"{1 / (1 - rate):.2f}"),
                        Series(trials(scale, subject, data, rate), "shift_first"),
                        _stated(scale, stated.FIRST_NORM[rate], label, subject, stated.DIGITISED),
                    )
                )
    return Table(
        "first-norm",
        "Shift of the first norm behind a dropout, Dropout-(a)",
        ("data", "network", "drop ratio", "at least"),
        "shift",
        tuple(rows),
        "Nothing upstream of this norm is shifted, so that theory puts it at 1 / (1 - rate) or above. "
        f"{plan(scale).note}",
    )


def figure1(scale: Scale) -> Figure:
    """Figure 1: shift of every norm of DenseNet with and without Dropout-(a), and what it costs."""
    label, data = plan(scale).data[-1]
    subject = next(one for one in plan(scale).subjects if one.name == "DenseNet")
    runs = {rate: trials(scale, subject, data, rate) for rate in (0.0, 0.5)}
    lines = tuple(Curve(f"drop ratio {rate:g}", (Series(run, "shift"),)) for rate, run in runs.items())
    costs = Curve(
        "test error",
        tuple(Series(run, "test_error") for run in runs.values()),
        tuple(f"{rate:g}" for rate in runs),
        (100 - 77.42, 100 - 68.55) if label == "CIFAR-100" else (),
    )
    return Figure(
        "figure1",
        f"Figure 1: variance shift of DenseNet on {label}, Dropout-(a)",
        (
            Panel("variance shift", lines, "norm", "max(real/moving, moving/real)"),
            Panel("what it costs", (costs,), "drop ratio", "test error, %", kind="bars"),
        ),
        note=plan(scale).note,
    )


def figure3(scale: Scale) -> Figure:
    """Figure 3: the cosines of Table 1 for every convolution, and their growth with the fan-in."""
    panels = []
    for label, data in plan(scale).data:
        cosines, aligned = [], []
        for subject in plan(scale).whole:
            run = trials(scale, subject, data, 0.0)
            cosines.append(Curve(subject.name, (Series(run, "cos2_layers"),)))
            sizes = fan_ins(subject.network, label)
            values = stated.BY_FAN_IN.get((label, subject.name), {}) if scale == "paper" else {}
            series = (Series(run, "d_cos2_by_width"),)
            aligned.append(Curve(subject.name, series, sizes, _points(values, sizes)))
        panels += [
            Panel(f"{label}: along the network", tuple(cosines), "convolution", "mean cos^2"),
            Panel(f"{label}: over the fan-in", tuple(aligned), "d", "mean d cos^2", kind="points"),
        ]
    return Figure(
        "figure3",
        "Figure 3: squared cosine between filters and the vector of ones, networks without dropout",
        tuple(panels),
        note=_noted(scale) if scale == "paper" else plan(scale).note,
    )


def figure4(scale: Scale) -> Figure:
    """Figure 4: shift of every norm for all rates, and the test errors; with means over the norms."""
    made = plan(scale)
    columns = [(placement, label, data) for placement in ("a", "b") for label, data in made.data]
    panels = []
    for subject in made.whole:
        for placement, label, data in columns:
            curves = tuple(
                Curve(f"{rate:g}", (Series(trials(scale, subject, data, rate, placement), "shift"),))
                for rate in made.rates
            )
            title = f"{subject.name}, Dropout-({placement}), {label}"
            panels.append(Panel(title, curves, "norm", "max(real/moving, moving/real)"))
    for column in columns:
        panels.append(_over_rates(scale, *column, "shift_mean", "mean shift", "lines", stated.FIGURE4_SHIFT))
    for column in columns:
        panels.append(
            _over_rates(scale, *column, "test_error", "test error, %", "bars", stated.FIGURE4_ERROR)
        )
    return Figure(
        "figure4",
        "Figure 4: variance shift of every norm, and test errors",
        tuple(panels),
        columns=len(columns),
        note=_noted(scale),
    )


def _over_rates(
    scale: Scale,
    placement: str,
    label: str,
    data: DataChoice,
    quantity: str,
    y_label: str,
    kind: Literal["lines", "bars"],
    values: stated.Curves,
) -> Panel:
    """One figure of every network over the drop ratio."""
    made = plan(scale)
    names = tuple(f"{rate:g}" for rate in made.rates)
    curves = []
    for subject in made.whole:
        series = (Series(trials(scale, subject, data, rate, placement), quantity) for rate in made.rates)
        paper = values.get((placement, label, subject.name), {})
        curves.append(Curve(subject.name, tuple(series), names, _points(paper, made.rates)))
    title = f"{y_label.split(',')[0]}, Dropout-({placement}), {label}"
    return Panel(title, tuple(curves), "drop ratio", y_label, kind=kind)


def figure5(scale: Scale) -> Figure:
    """Figure 5: one and the same network on its training images, in train mode and in eval mode, by epoch."""
    panels = []
    for label, data in plan(scale).data:
        for subject in plan(scale).subjects:
            if subject.name not in FOLLOWED:
                continue
            curves = []
            epochs = tuple(float(epoch) for epoch in range(1, subject.settings.epochs + 1))
            for rate in (0.0, 0.5):
                run = trials(scale, subject, data, rate)
                for mode, quantity in (
                    ("train", "probe_train_mode_error"),
                    ("eval", "probe_eval_mode_error"),
                ):
                    curves.append(Curve(f"{rate:g}, {mode} mode", (Series(run, quantity),), epochs))
            title = f"{subject.name}, Dropout-(a), {label}"
            panels.append(Panel(title, tuple(curves), "epoch", "error on training images, %"))
    return Figure(
        "figure5",
        "Figure 5: error on training images in train mode and in eval mode",
        tuple(panels),
        note="Measured behind each epoch with fixed weights; the paper's figures in train mode are probably "
        f"running ones of the epoch. {plan(scale).note}",
    )


def figure6(scale: Scale) -> Figure:
    """Figure 6: training images that DenseNet with Dropout-(a) 0.5 knows in train mode only."""
    label, data = plan(scale).data[0]
    subject = next(one for one in plan(scale).subjects if one.name == "DenseNet")
    run = trials(scale, subject, data, 0.5)[:1]  # of one network: another one fails on other images
    panels = []
    for place in range(PICTURES):
        curves = tuple(
            Curve(f"{mode} mode", (Series(run, f"{mode}_scores{place}"),)) for mode in ("train", "eval")
        )
        picture = Series(run, f"picture{place}")
        panels.append(Panel(f"image {place + 1}", curves, "class", "score", kind="bars", picture=picture))
    return Figure(
        "figure6",
        f"Figure 6: class scores of training images in both modes, DenseNet, Dropout-(a) 0.5, {label}",
        tuple(panels),
        note="Images that are classified rightly in train mode and wrongly in eval mode, of the two classes "
        f"that have most of them. One network, seed {run[0].seed}. {plan(scale).note}",
    )


@cache
def fan_ins(network: Network, data: str) -> tuple[float, ...]:
    """The numbers of weights per filter that a network's convolutions have, each once, in order."""
    channels = 1 if data == "digits" else 3
    with torch.device("meta"):
        built = getattr(networks, network.family)(in_channels=channels, **dict(network.arguments))
    return tuple(
        float(size)
        for size in sorted(
            {module.weight[0].numel() for module in built.modules() if isinstance(module, torch.nn.Conv2d)}
        )
    )


def _stated(
    scale: Scale, values: stated.ByNetwork, data: str, subject: Subject, caveat: str
) -> PaperFigure | None:
    """What the paper states for this network: on these data, or on CIFAR-10 where it has no such."""
    own = data in ("CIFAR-10", "CIFAR-100")
    value = values.get((data if own else "CIFAR-10", subject.name))
    if value is None:
        return None
    full = "" if scale == "paper" else f"full-size network and schedule{'' if own else ', CIFAR-10'}; "
    return PaperFigure(value, full + caveat)


def _noted(scale: Scale) -> str:
    """The note of a figure that may show the paper's points."""
    made = plan(scale)
    if not any(label in ("CIFAR-10", "CIFAR-100") for label, _ in made.data):
        return made.note
    full = "" if scale == "paper" else ", of full-size networks and schedules"
    return f"Hollow: the paper's points{full}, read off its plots (arXiv v1). {made.note}"


def _points(values: Mapping[float, float], places: tuple[float, ...]) -> tuple[float | None, ...]:
    return tuple(values.get(place) for place in places) if values else ()


RECIPE = Recipe(
    "variance-shift",
    "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
    "X. Li, S. Chen, X. Hu, J. Yang, arXiv 1801.05134 (2018)",
    tables={
        "table1": table1,
        "table3": table3,
        "table4": table4,
        "table6": table6,
        "first-norm": first_norm,
    },
    figures={
        "figure1": figure1,
        "figure3": figure3,
        "figure4": figure4,
        "figure5": figure5,
        "figure6": figure6,
    },
    claims=claims,
)
