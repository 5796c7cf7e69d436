"""Adjusting for dropout variance in batch normalization and weight initialization.

D. Hendrycks, K. Gimpel, arXiv 1607.02488 (version of November 2016): the start of the weights on signals and
on the VGG-like network, and norms whose variance is estimated anew without dropout. Left out: MNIST and
SVHN, which are no data sets of this package.
"""

from __future__ import annotations

from varshift_lab.recipes._dropout_variance_plan import (
    plan,
    signals,
    trained_dense,
    trained_vgg,
    vgg_cells,
)
from varshift_lab.recipes._dropout_variance_signal import Start
from varshift_lab.studies import Claim, Curve, Figure, Panel, PaperFigure, Recipe, Row, Scale, Series, Table

STARTS: dict[Start, str] = {
    "corrected": "corrected, forward",
    "paper": "corrected, both as printed",
    "autograd": "corrected, both for autograd",
    "he": "He",
    "xavier": "Xavier",
}
KEEPS = (1.0, 0.6)
ONE_RUN = "one run, no spread stated"


def gain(scale: Scale) -> Table:
    """What a layer does to the second moment of signal and gradient."""
    rows = []
    for keep in KEEPS:
        for start, name in STARTS.items():
            for what in ("signal", "gradient"):
                labels = (f"{keep:g}", name, what)
                rows.append(Row(labels, Series(signals(scale, start, keep), f"{what}_gain")))
    made = plan(scale)
    return Table(
        "gain",
        "Gain of a layer at the start, ReLU",
        ("keep", "start", "of"),
        "factor of the second moment per layer",
        tuple(rows),
        f"Geometric mean over {made.depth} layers of {made.width} units. 1 is right; the paper prints "
        "densities instead.",
    )


def vgg(scale: Scale) -> Table:
    """The VGG-like network from both starts."""
    made = plan(scale)
    rows = []
    for optimiser, rate, corrected in vgg_cells(made):
        value = optimiser.paper[0 if corrected else 1]
        caveat = f"one figure per optimiser and start, the rate is not said; {ONE_RUN}"
        if scale != "paper":
            caveat = f"full-size network and schedule, CIFAR-10; {caveat}"
        rows.append(
            Row(
                (made.vgg_data[0], optimiser.name, f"{rate:g}", _started(corrected)),
                Series(trained_vgg(scale, optimiser, rate, corrected), "test_error"),
                PaperFigure(value, caveat),
            )
        )
    return Table(
        "vgg",
        "VGG-like network without norms, by the start of its weights",
        ("data", "optimiser", "learning rate", "start"),
        "test error, %",
        tuple(rows),
        made.note,
    )


def reestimation(scale: Scale) -> Table:
    """DenseNets with dropout in front of norms, before and after the norms are estimated anew."""
    rows = []
    kinds = (("of training", "test_error"), ("new variances", "variance_only_test_error"))
    for one in plan(scale).reestimations:
        for time, halfway in (("halfway", True), ("final", False)):
            run = trained_dense(scale, one, halfway=halfway)
            for place, (statistics, quantity) in enumerate(kinds):
                value = PaperFigure(one.paper[place + (0 if halfway else 2)], ONE_RUN) if one.paper else None
                rows.append(Row((*one.label, time, statistics), Series(run, quantity), value))
            labels = (*one.label, time, "new means and variances")
            rows.append(Row(labels, Series(run, "adjusted_test_error")))
    return Table(
        "reestimation",
        "Statistics of norms estimated anew without dropout",
        ("data", "network", "drop ratio", "time", "statistics"),
        "test error, %",
        tuple(rows),
        plan(scale).note,
    )


def figure1(scale: Scale) -> Figure:
    """Figure 1: the signal on its way through the layers; here its second moment."""
    return _signal_figure(scale, "figure1", "signal", "Figure 1: the signal at the start, layer by layer")


def figure4(scale: Scale) -> Figure:
    """Figure 4: the gradient on its way back; here its second moment, as autograd computes it."""
    return _signal_figure(scale, "figure4", "gradient", "Figure 4: the gradient at the start, layer by layer")


def _signal_figure(scale: Scale, name: str, quantity: str, title: str) -> Figure:
    panels = tuple(
        Panel(
            f"keep {keep:g}",
            tuple(
                Curve(label, (Series(signals(scale, start, keep), quantity),))
                for start, label in STARTS.items()
            ),
            "layer",
            "second moment",
            log_y=True,
        )
        for keep in KEEPS
    )
    return Figure(name, title, panels, note="The paper shows densities, of other widths.")


def figure3(scale: Scale) -> Figure:
    """Figure 3: training loss of the VGG-like network, from both starts."""
    made = plan(scale)
    panels = []
    for optimiser in made.optimisers:
        curves = tuple(
            Curve(
                f"{_started(corrected)}, rate {rate:g}",
                (Series(trained_vgg(scale, optimiser, rate, corrected), "train_loss_history"),),
                tuple(float(epoch) for epoch in range(1, optimiser.settings.epochs + 1)),
            )
            for one, rate, corrected in vgg_cells(made)
            if one is optimiser
        )
        panels.append(Panel(optimiser.name, curves, "epoch", "training loss"))
    return Figure("figure3", "Figure 3: training loss of the VGG-like network", tuple(panels), note=made.note)


def claims(scale: Scale) -> tuple[Claim, ...]:
    """What the paper says."""
    made = plan(scale)
    found = []
    for keep in KEEPS:
        corrected = signals(scale, "corrected", keep)
        for start in ("he", "xavier"):
            if start == "he" and keep == 1:
                continue  # one and the same start
            found.append(
                Claim(
                    f"keep {keep:g}: the corrected start moves the signal by fewer powers of ten than "
                    f"{STARTS[start]}'s.",
                    Series(corrected, "signal_drift"),
                    Series(signals(scale, start, keep), "signal_drift"),
                    source="Figure 1",
                )
            )
    for optimiser in made.optimisers:
        for rate in optimiser.rates:
            ours, he = (trained_vgg(scale, optimiser, rate, corrected) for corrected in (True, False))
            where = f"VGG, {optimiser.name} at {rate:g}: the corrected start"
            found += [
                Claim(
                    f"{where} has less training loss than He's, on average over the epochs.",
                    Series(ours, "train_loss_mean"),
                    Series(he, "train_loss_mean"),
                    source="Figure 3; exploratory, added after first runs had been seen",
                ),
                Claim(
                    f"{where} makes fewer errors than He's.",
                    Series(ours, "test_error"),
                    Series(he, "test_error"),
                    source="the table of test errors",
                ),
            ]
    for one in made.reestimations:
        for time, halfway in (("halfway", True), ("in the end", False)):
            run = trained_dense(scale, one, halfway=halfway)
            found.append(
                Claim(
                    f"{one.label[1]} on {one.label[0]}, drop ratio {one.label[2]}: new variances make fewer "
                    f"errors {time}.",
                    Series(run, "variance_only_test_error"),
                    Series(run, "test_error"),
                    source="the table of re-estimated norms",
                )
            )
    return tuple(found)


def _started(corrected: bool) -> str:
    return STARTS["corrected" if corrected else "he"]


RECIPE = Recipe(
    "dropout-variance-init",
    "Adjusting for Dropout Variance in Batch Normalization and Weight Initialization",
    "D. Hendrycks, K. Gimpel, arXiv 1607.02488 (2016)",
    tables={"gain": gain, "vgg": vgg, "reestimation": reestimation},
    figures={"figure1": figure1, "figure3": figure3, "figure4": figure4},
    claims=claims,
)
