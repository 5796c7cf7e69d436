"""How to use dropout correctly on residual networks with batch normalization.

B. J. Kim, H. Choi, H. Jang, D. Lee, S. W. Kim, arXiv 2302.06112, UAI 2023. Of this paper the abstract and
five figures of a leaderboard could be read. Its two guidelines are put to the test: one dropout behind the
last norm and in front of the last weight of a branch (our position F), and head dropout in front of the
pooling. The letters of the positions, the rates and the training are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from varshift.model import preserved
from varshift.trials import Measurements, Workbench
from varshift_lab.data import Augmentation, Images
from varshift_lab.studies import Claim, Curve, Figure, Panel, PaperFigure, Recipe, Row, Scale, Series, Table
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial, measure

GUIDELINE = "F"
# B and C, and E and F, are one and the same in front of and behind a ReLU.
POSITIONS = {
    "A": "in front of the first norm",
    "C": "in front of the first weight",
    "D": "in front of the last norm",
    "F": "in front of the last weight",
    "G": "behind the last weight",
    "T": "on the trunk",
    "P": "drop path",
}
HEADS = {"before_pooling": "before pooling", "last": "behind pooling"}
# The rate that the noise of class scores is computed for.
HEAD_RATE = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run at one scale.

    Attributes:
        network: The network without dropout.
        data: By name.
        settings: The training.
        seeds: One trial each.
        rates: DROP probabilities.
        note: How the scale was chosen.
    """

    network: Network
    data: tuple[tuple[str, DataChoice], ...]
    settings: TrainingSettings
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    note: str


def plan(scale: Scale) -> Plan:
    """What is run at this scale."""
    cycle = partial(TrainingSettings, learning_rate=0.1, schedule="cycle", warmup=0.3, weight_decay=5e-4)
    if scale == "smoke":
        return Plan(
            Network.of("preresnet", depth=14, width=4),
            (("digits", DataChoice("digits")),),
            cycle(epochs=3, batch_size=64),
            (0, 1),
            (0.5,),
            "A small network, briefly trained on 8x8 digits: that all of it runs, not what the paper claims.",
        )
    if scale == "laptop":
        return Plan(
            Network.of("preresnet", depth=14, width=8),
            (("CIFAR-10", DataChoice("cifar10", train=4000, test=2000, size=16)),),
            cycle(epochs=6, batch_size=100),
            (0, 1, 2),
            (0.5,),
            "PreResNet-14 of width 8, 4,000 images of 16x16 pixels, 240 steps: networks that learn little, "
            "so that all dropout costs accuracy.",
        )
    standard = Augmentation(pad=4, flip=0.5)
    return Plan(
        Network.of("preresnet", depth=110, block="basic"),
        (("CIFAR-10", DataChoice("cifar10")), ("CIFAR-100", DataChoice("cifar100"))),
        TrainingSettings(
            epochs=164,
            batch_size=128,
            learning_rate=0.1,
            milestones=(81 / 164, 122 / 164),
            augmentation=standard,
            drop_last=False,
        ),
        (0, 1, 2),
        (0.1, 0.5),
        "The paper's network and data; its training and rates could not be read, these are the usual ones.",
    )


@measure("head_noise")
def head_noise(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Variance of the class scores that a head dropout of `HEAD_RATE` would cause in this network.

    With the map ``h`` of `S` positions in front of the pooling, the classifier's weights ``w`` and
    ``q / k = rate / (1 - rate)``: in front of the pooling ``(q/k) sum_c w_c^2 mean(h_c^2) / S``, behind it
    ``(q/k) sum_c w_c^2 mean(h_c)^2``; means over test images and classes. Derived; the paper's own theorem
    could not be read.
    """
    maps: list[torch.Tensor] = []
    norm, linear = model.get_submodule("norm"), model.get_submodule("linear")
    with preserved(model), torch.no_grad():  # which takes the hook away, too
        norm.register_forward_hook(lambda *event: maps.append(F.relu(event[-1]).float()))
        model.eval()
        for inputs in test.normalised().split(500):
            model(inputs)
    map_ = torch.cat(maps).double()
    odds = HEAD_RATE / (1 - HEAD_RATE)
    squares = linear.weight.detach().double().square().mean(0)  # type: ignore[union-attr]
    positions = map_.shape[2] * map_.shape[3]
    before = odds * (map_.square().mean((0, 2, 3)) * squares).sum() / positions
    behind = odds * (map_.mean((2, 3)).square().mean(0) * squares).sum()
    return {"head_noise_before_pooling": float(before), "head_noise_behind_pooling": float(behind)}


def trials(
    scale: Scale, data: DataChoice, placement: str = "none", rate: float = 0.0
) -> tuple[TrainingTrial, ...]:
    """The trials of one configuration, one per seed."""
    made = plan(scale)
    network, measures = made.network, ("errors", "adjusted", "shift")
    if rate:
        arguments = dict(network.arguments)
        network = Network.of(network.family, **arguments, placement=placement, dropout=rate)
    else:
        measures = (*measures, "head_noise")
    return tuple(TrainingTrial(seed, network, data, made.settings, measures) for seed in made.seeds)


def positions(scale: Scale) -> Table:
    """Test errors for one dropout per branch at every position, as trained and with adjusted statistics."""
    rows = []
    for label, data, rate, placement in _cells(scale, POSITIONS):
        run = trials(scale, data, placement, rate)
        for statistics, quantity in (("of training", "test_error"), ("adjusted", "adjusted_test_error")):
            paper = _stated(scale, label, placement) if quantity == "test_error" else None
            labels = (label, f"{rate:g}", _named(placement), statistics)
            rows.append(Row(labels, Series(run, quantity), paper))
    return Table(
        "positions",
        "One dropout in every residual branch, by its position",
        ("data", "drop ratio", "position", "statistics"),
        "test error, %",
        tuple(rows),
        plan(scale).note,
    )


def shifts(scale: Scale) -> Table:
    """Mean variance shift over all norms for every position."""
    rows = [
        Row(
            (label, f"{rate:g}", _named(placement)),
            Series(trials(scale, data, placement, rate), "shift_mean"),
        )
        for label, data, rate, placement in _cells(scale, {**POSITIONS, **HEADS})
    ]
    return Table(
        "shifts",
        "Variance shift by the position of the dropout",
        ("data", "drop ratio", "position"),
        "mean over norms of max(real/moving, moving/real)",
        tuple(rows),
        plan(scale).note,
    )


def head(scale: Scale) -> Table:
    """Test errors with one dropout in the head, in front of the pooling and behind it."""
    rows = [
        Row(
            (label, f"{rate:g}", _named(placement)),
            Series(trials(scale, data, placement, rate), "test_error"),
        )
        for label, data, rate, placement in _cells(scale, HEADS)
    ]
    return Table(
        "head",
        "One dropout in the head, by its position",
        ("data", "drop ratio", "position"),
        "test error, %",
        tuple(rows),
        f"At equal rates dropout in front of the pooling is far weaker noise. {plan(scale).note}",
    )


def noise(scale: Scale) -> Table:
    """Variance of the class scores that dropout in the head causes, at both places of the same networks."""
    rows = [
        Row((label, f"{HEAD_RATE:g}", name), Series(trials(scale, data), f"head_noise_{place}"))
        for label, data in plan(scale).data
        for place, name in (("before_pooling", "before pooling"), ("behind_pooling", "behind pooling"))
    ]
    return Table(
        "head-noise",
        "Noise of the class scores with dropout in the head, networks trained without it",
        ("data", "drop ratio", "position"),
        "variance of a class score",
        tuple(rows),
        f"In closed form from the maps of the test images. {plan(scale).note}",
    )


def by_position(scale: Scale) -> Figure:
    """Shift of every norm, and test errors, for every position."""
    made = plan(scale)
    panels = []
    for label, data in made.data:
        for rate in made.rates:
            curves = [Curve("none", (Series(trials(scale, data), "shift"),))]
            for placement in POSITIONS:
                curves.append(Curve(placement, (Series(trials(scale, data, placement, rate), "shift"),)))
            title = f"{label}, drop ratio {rate:g}"
            panels.append(Panel(title, tuple(curves), "norm", "max(real/moving, moving/real)", log_y=True))
            places = {"none": 0.0, **dict.fromkeys([*POSITIONS, *HEADS], rate)}
            bars = []
            for name, quantity in (("of training", "test_error"), ("adjusted", "adjusted_test_error")):
                series = tuple(
                    Series(trials(scale, data, placement, strength), quantity)
                    for placement, strength in places.items()
                )
                bars.append(Curve(f"statistics {name}", series, tuple(HEADS.get(one, one) for one in places)))
            panels.append(Panel(title, tuple(bars), "position", "test error, %", kind="bars"))
    letters = "; ".join(f"{letter}: {name}" for letter, name in POSITIONS.items())
    return Figure(
        "by-position",
        "Shift of every norm and test errors by the position of the dropout",
        tuple(panels),
        note=f"{letters}. {made.note}",
    )


def claims(scale: Scale) -> tuple[Claim, ...]:
    """The two guidelines."""
    found = []
    for label, data in plan(scale).data:
        for rate in plan(scale).rates:
            where = f"{label}, drop ratio {rate:g}"
            best = trials(scale, data, GUIDELINE, rate)
            for placement in POSITIONS:
                if placement in (GUIDELINE, "P"):
                    continue
                other = trials(scale, data, placement, rate)
                found += [
                    Claim(
                        f"{where}: dropout {POSITIONS[GUIDELINE]} makes fewer errors than "
                        f"{POSITIONS[placement]}.",
                        Series(best, "test_error"),
                        Series(other, "test_error"),
                        source="abstract, first guideline",
                    ),
                    Claim(
                        f"{where}: dropout {POSITIONS[GUIDELINE]} shifts the norms less than "
                        f"{POSITIONS[placement]}.",
                        Series(best, "shift_mean"),
                        Series(other, "shift_mean"),
                        source="derived for the first guideline",
                    ),
                ]
            found += [
                Claim(
                    f"{where}: head dropout {name} shifts the norms by no more than 0.02 beyond no dropout.",
                    Series(trials(scale, data, placement, rate), "shift_mean"),
                    Series(trials(scale, data), "shift_mean"),
                    margin=0.02,
                    source="no norm follows it",
                )
                for placement, name in HEADS.items()
            ]
        found.append(
            Claim(
                f"{label}: head dropout before pooling makes class scores less noisy than behind pooling.",
                Series(trials(scale, data), "head_noise_before_pooling"),
                Series(trials(scale, data), "head_noise_behind_pooling"),
                source="abstract, second guideline",
            )
        )
    return tuple(found)


def _cells(scale: Scale, placements: dict[str, str]) -> list[tuple[str, DataChoice, float, str]]:
    """No dropout, then every position at every rate."""
    made = plan(scale)
    cells = []
    for label, data in made.data:
        cells.append((label, data, 0.0, "none"))
        cells += [(label, data, rate, placement) for rate in made.rates for placement in placements]
    return cells


def _named(placement: str) -> str:
    if placement in POSITIONS:
        return f"{placement}: {POSITIONS[placement]}"
    return HEADS.get(placement, placement)


def _stated(scale: Scale, data: str, placement: str) -> PaperFigure | None:
    """What a leaderboard says of the paper's PreResNet-110."""
    value = {"CIFAR-10": 100 - 94.4367, "CIFAR-100": 100 - 73.98}.get(data)
    if scale != "paper" or placement != GUIDELINE or value is None:
        return None
    return PaperFigure(value, "from a leaderboard, which does not say the position, the rate or the seeds")


RECIPE = Recipe(
    "residual-position",
    "How to Use Dropout Correctly on Residual Networks with Batch Normalization",
    "B. J. Kim, H. Choi, H. Jang, D. Lee, S. W. Kim, arXiv 2302.06112, UAI 2023",
    tables={"positions": positions, "shifts": shifts, "head": head, "head-noise": noise},
    figures={"by-position": by_position},
    claims=claims,
)
