"""Single shuffle against random reshuffling with batch norm (Wu, Yun & Sra, ICML 2023, arXiv 2302.12444).

The paper's full text was not available. What is compared with here are figures of an earlier, independent
re-implementation of its constructions, and closed forms; the paper's own real-data networks and defaults
(from its code) are those of the scale ``paper``.

How the settings of the scale ``laptop`` were chosen: they are those of the earlier figures, fixed before
anything was trained here, with fewer seeds. Nothing was tuned.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from varshift_lab.recipes._shuffling_cases import (
    BOTH,
    CLOSED_FORM,
    EARLIER,
    INDEX,
    NAMES,
    ORDERS,
    RESIDUAL,
    TOY,
    TOY_FIGURES,
    TWO_SEEDS,
    image_cases,
    image_seeds_at,
    residual_trial,
    seeds_at,
    series_of,
    toy_trial,
)
from varshift_lab.recipes._shuffling_claims import claims
from varshift_lab.recipes._shuffling_data import BlockToy, PlaneToy
from varshift_lab.recipes._shuffling_trials import (
    Order,
    RegressionTrial,
    ScalarOptimaTrial,
    SeparabilityTrial,
    ShufflingTrial,
)
from varshift_lab.studies import (
    Curve,
    Figure,
    Panel,
    PaperFigure,
    Recipe,
    Row,
    Scale,
    Table,
)

# ---------------------------------------------------------------------- the toy


def toy(scale: Scale) -> Table:
    """Five figures for each batch size and order."""
    rows = [
        Row(
            (str(size), ORDERS[order], NAMES[quantity]),
            series_of(seeds_at(scale), toy_trial(scale, order, size), quantity),
            PaperFigure(value, f"{EARLIER}; 8 seeds, 1,000 epochs"),
        )
        for size, orders in TOY.items()
        for order in BOTH
        for quantity, value in zip(TOY_FIGURES, orders[order], strict=True)
    ]
    return Table(
        "toy",
        "A linear network with batch norm on 48 Gaussian vectors, by batch size and order",
        ("batch size", "order", "figure"),
        "as the figure says",
        tuple(rows),
        "The training risk is the loss with statistics of the whole training set in one batch. For random "
        "reshuffling, 'its own batches' are those of the first epoch."
        + (" At this scale it is trained for 300 epochs in place of 1,000." if scale == "smoke" else ""),
    )


def orders(scale: Scale) -> Table:
    """What helps at batches of 4: another order of the same batches, replacement, reshuffling at the end."""
    known = {
        ("single", 0, "own_loss"): (0.162, "10 seeds, 300 epochs, as printed"),
        ("single", 0, "eval_loss"): (0.733, "10 seeds, 300 epochs"),
        ("single", 0, "test_loss"): (2.32, "10 seeds, 300 epochs"),
        ("reshuffle", 0, "own_loss"): (0.372, "10 seeds, 300 epochs, as printed"),
        ("reshuffle", 0, "eval_loss"): (0.163, "10 seeds, 300 epochs"),
        ("reshuffle", 0, "test_loss"): (0.79, "10 seeds, 300 epochs"),
        ("replacement", 0, "full_batch_loss"): (0.129, "8 seeds, 1,000 epochs"),
        ("single", 100, "full_batch_loss"): (0.10, "8 seeds, 900 epochs and 100"),
    }
    arms: list[tuple[Order, int]] = [*((order, 0) for order in ORDERS), ("single", 100)]
    rows = [
        Row(
            (ORDERS[order] + (", then reshuffling" if cure else ""), NAMES[quantity]),
            series_of(seeds_at(scale), toy_trial(scale, order, 4, 300 - cure, cure), quantity),
            PaperFigure(known[key][0], f"{EARLIER}; {known[key][1]}")
            if (key := (order, cure, quantity)) in known
            else None,
        )
        for order, cure in arms
        for quantity in ("own_loss", "full_batch_loss", "eval_loss", "test_loss")
    ]
    return Table(
        "orders",
        "The same network, batches of 4, 300 epochs: only new batches help, not a new order of the old ones",
        ("order", "figure"),
        "loss",
        tuple(rows),
        "'then reshuffling' means 100 of the 300 epochs.",
    )


def memorisation(scale: Scale) -> Table:
    """The index of what is learnt of the batches alone."""
    rows = [
        Row(
            (str(size), ORDERS[order]),
            series_of(seeds_at(scale), toy_trial(scale, order, size, 300), "memorisation"),
            PaperFigure(value, f"{EARLIER}; 8 seeds, 300 epochs"),
        )
        for order in BOTH
        for size, value in zip(TOY, INDEX[order], strict=True)
    ]
    return Table(
        "memorisation",
        "Loss on batches drawn anew minus loss on the batches of the last epoch, same weights, train mode",
        ("batch size", "order"),
        "loss",
        tuple(rows),
        "300 epochs. It needs no eval mode, so that stale running statistics play no part in it.",
    )


# ---------------------------------------------------------------------- optima


def scalar(scale: Scale) -> Table:
    """Bias and spread of the single-shuffle optimum for one feature."""
    spread = {2: 0.0130, 3: 0.0126, 4: 0.0105, 8: 0.0085, 16: 0.0060, 32: 0.0042, 128: 0.0022}
    rows = []
    for size, deviation in spread.items():
        law = math.sqrt(2 / size) * math.exp(math.lgamma(size / 2) - math.lgamma((size - 1) / 2)) - 1
        trial = ScalarOptimaTrial(0, batch_size=size)
        rows += [
            Row(
                (str(size), "bias, %"),
                series_of(seeds_at(scale), trial, "bias"),
                PaperFigure(100 * law, CLOSED_FORM),
            ),
            Row(
                (str(size), "deviation over partitions"),
                series_of(seeds_at(scale), trial, "deviation"),
                PaperFigure(deviation, f"{EARLIER}; 1 seed"),
            ),
        ]
    return Table(
        "scalar",
        "One Gaussian feature that is its own target: what small batches do to the optimum under any order",
        ("batch size", "figure"),
        "as the figure says",
        tuple(rows),
        "Bias against the optimum with statistics of all data; 1,024 samples, 200 partitions. It is the same "
        "for single shuffle and reshuffling: no order cures it.",
    )


def regression(scale: Scale) -> Table:
    """Which optimum SGD reaches in linear regression."""
    known: dict[Literal["single", "reshuffle"], dict[str, tuple[float, str]]] = {
        "single": {
            "to_single": (0.6, "0.5 to 0.7"),
            "to_reshuffle": (11, "10 to 12"),
            "to_full_batch": (20, "19 to 21"),
        },
        "reshuffle": {
            "to_single": (11, "10 to 12"),
            "to_reshuffle": (3, "2 to 4"),
            "to_full_batch": (20, "19 to 21"),
        },
    }
    optima = {"to_single": "single shuffle", "to_reshuffle": "reshuffling", "to_full_batch": "full batch"}
    epochs = 300 if scale == "smoke" else 2000
    rows = [
        Row(
            (ORDERS[order], optima[quantity]),
            series_of(seeds_at(scale), RegressionTrial(0, order=order, epochs=epochs), quantity),
            PaperFigure(value, f"{EARLIER}; {text} %, middle shown"),
        )
        for order, figures in known.items()
        for quantity, (value, text) in figures.items()
    ]
    return Table(
        "regression",
        "Linear regression behind batch norm by SGD, batches of 4: distance to the optimum of each risk",
        ("trained with", "optimum of"),
        "% of the optimum's norm",
        tuple(rows),
        f"120 samples, 10 features, {epochs:,} epochs.",
    )


# ---------------------------------------------------------------------- toys of the paper


def separability(scale: Scale) -> Table:
    """How often fixed batches make the authors' toy sets separable."""
    some, earlier = {"smoke": 50, "laptop": 400, "paper": 400}[scale], f"{EARLIER}; 400 permutations"
    exact = f"{EARLIER}; all permutations, exact"
    cases: list[tuple[str, SeparabilityTrial, dict[str, PaperFigure]]] = [
        (
            "six points, batches of 2",
            SeparabilityTrial(0, BlockToy()),
            {
                "separable": PaperFigure(100 * 240 / 720, exact),
                "partly_separable": PaperFigure(100 * 432 / 720, exact),
                "inseparable": PaperFigure(100 * 48 / 720, exact),
                "against": PaperFigure(
                    100 * 624 / 720, f"{exact}, but for a vertex of a linear program in place of the margin"
                ),
            },
        )
    ]
    plane = {
        (10, 2): ("partly_separable", 32),
        (50, 2): ("partly_separable", 26),
        (50, 4): ("separable", 3.5),
        (10, 8): ("separable", 75),
    }
    for (blocks, size), (kind, value) in plane.items():
        trial = SeparabilityTrial(0, PlaneToy(blocks), size, some)
        cases.append((f"plane, m = {blocks}, batches of {size}", trial, {kind: PaperFigure(value, earlier)}))
    rows = [
        Row(
            (name, quantity.replace("_", " ")),
            series_of(range(1) if trial.orders is None else seeds_at(scale), trial, quantity),
            known.get(quantity),
        )
        for name, trial, known in cases
        for quantity in ("separable", "partly_separable", "inseparable", "against")
    ]
    return Table(
        "separability",
        "The authors' toy sets: permutations for which fixed batches can be told apart, so that SGD diverges",
        ("set", "figure"),
        "% of permutations",
        tuple(rows),
        "'against': the direction in which SGD then diverges has a training point on its wrong side under "
        "statistics of all data, so that the training risk diverges too. All sets as they are, and with "
        f"statistics of all data, are separable. {some} permutations for each seed in the plane, all 720 for "
        "the six points.",
    )


# ---------------------------------------------------------------------- images


def images(scale: Scale) -> Table:
    """Networks on images under both orders."""
    rows = [
        Row(
            (name, ORDERS[order], NAMES[quantity]),
            series_of(image_seeds_at(scale), replace(trial, order=order), quantity),
            PaperFigure(value, TWO_SEEDS)
            if (value := known.get(order, {}).get(quantity)) is not None
            else None,
        )
        for name, (trial, known) in image_cases(scale).items()
        for order in BOTH
        for quantity in ("printed_loss", "full_batch_loss", "eval_loss", "eval_error", "test_error")
    ]
    notes = {
        "smoke": "512 digits, 32 principal components, 20 epochs.",
        "laptop": "CIFAR-10, 128 principal components, width 256. Where the earlier figure was a range, its "
        "middle is shown. Training of a network without augmentation, so that test errors are large.",
        "paper": "The released code's defaults: SGD without momentum or decay, rate 0.001, batches of 128, "
        "100 epochs, width 512. The flags behind the paper's figures are not in it. Its ResNet-18 and VGG16 "
        "start from weights of ImageNet and are left out.",
    }
    return Table(
        "images",
        "Networks of linear layers and batch norms on images, by order",
        ("network", "order", "figure"),
        "as the figure says",
        tuple(rows),
        notes[scale],
    )


def residual(scale: Scale) -> Table:
    """A convolutional network under both orders."""
    quantities = {
        "train_loss_last": "loss as printed in training",
        "train_loss_train_mode": "loss on other batches, train mode",
        "train_loss_eval": "eval-mode loss on training data",
        "train_error_eval": "eval-mode error on training data, %",
        "test_error": "test error, %",
    }
    rows = [
        Row((ORDERS[order], text), series_of(image_seeds_at(scale), residual_trial(scale, order), quantity))
        for order in ("single", "reshuffle")
        for quantity, text in quantities.items()
    ]
    return Table(
        "residual",
        f"A residual network on images, by order: {RESIDUAL[scale]}",
        ("order", "figure"),
        "as the figure says",
        tuple(rows),
        "Plain SGD at a constant rate, no augmentation. The paper's ResNet-18 starts from weights of "
        "ImageNet; this one does not.",
    )


# ---------------------------------------------------------------------- figures


def _history(seeds: range, trial: ShufflingTrial, quantity: str, label: str) -> Curve:
    return Curve(label, (series_of(seeds, trial, f"{quantity}_history"),), trial.measured_at)


def divergence(scale: Scale) -> Figure:
    """The toy in time."""
    seeds = seeds_at(scale)
    titles = {
        "own_loss": "loss on the first epoch's batches",
        "full_batch_loss": "training risk",
        "norm": "norm of the weights",
    }
    panels = tuple(
        Panel(
            title,
            tuple(_history(seeds, toy_trial(scale, order, 4), quantity, ORDERS[order]) for order in BOTH),
            "epoch",
            "norm" if quantity == "norm" else "loss",
        )
        for quantity, title in titles.items()
    )
    return Figure(
        "divergence",
        "A linear network with batch norm, batches of 4",
        panels,
        columns=3,
    )


def batch_size(scale: Scale) -> Figure:
    """Losses and index by batch size."""
    sizes = tuple(str(size) for size in TOY)

    def curve(order: Order, quantity: str, epochs: int | None, paper: tuple[float, ...]) -> Curve:
        series = tuple(
            series_of(seeds_at(scale), toy_trial(scale, order, size, epochs), quantity) for size in TOY
        )
        return Curve(ORDERS[order], series, sizes, paper)

    risk = TOY_FIGURES.index("full_batch_loss")
    return Figure(
        "batch-size",
        "A linear network with batch norm, by batch size",
        (
            Panel(
                "training risk",
                tuple(curve(o, "full_batch_loss", None, tuple(TOY[s][o][risk] for s in TOY)) for o in BOTH),
                "batch size",
                "loss",
                log_y=True,
            ),
            Panel(
                "memorisation of batches",
                tuple(curve(order, "memorisation", 300, INDEX[order]) for order in BOTH),
                "batch size",
                "loss",
            ),
        ),
        note=f"Hollow markers: {EARLIER}.",
    )


def figure1(scale: Scale) -> Figure:
    """The paper's headline: a linear network of three layers on real images."""
    name, trial = next(
        (name, trial)
        for name, (trial, _) in reversed(image_cases(scale).items())
        if name.startswith("linear, 3 layers")
    )
    titles = {"printed_loss": "loss as training prints it", "full_batch_loss": "training risk"}
    panels = tuple(
        Panel(
            title,
            tuple(
                _history(image_seeds_at(scale), replace(trial, order=order), quantity, ORDERS[order])
                for order in BOTH
            ),
            "epoch",
            "cross-entropy",
        )
        for quantity, title in titles.items()
    )
    return Figure(
        "figure1",
        "Three linear layers with batch norms, on images",
        panels,
        note=f"{name}. After the paper's Figure 1 as it is recalled; its values were not available.",
    )


RECIPE = Recipe(
    name="shuffling",
    title="On the Training Instability of Shuffling SGD with Batch Normalization",
    source="D. X. Wu, C. Yun, S. Sra, ICML 2023, arXiv 2302.12444",
    tables={
        "toy": toy,
        "orders": orders,
        "memorisation": memorisation,
        "scalar": scalar,
        "regression": regression,
        "separability": separability,
        "images": images,
        "residual": residual,
    },
    figures={"divergence": divergence, "batch-size": batch_size, "figure1": figure1},
    claims=claims,
)
