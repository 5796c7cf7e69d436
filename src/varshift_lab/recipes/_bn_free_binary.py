"""Binary networks without batch norm (Chen et al., CVPR workshops 2021, arXiv 2104.08215).

The paper's text was not available; its networks, optimiser and clipping are those of its released code, and
its CIFAR figures are as another paper reports them. ImageNet, with a distilling teacher, is left out: the
trainer keeps a whole training set in memory.

How the settings of the scale ``laptop`` were chosen: the learning rate is twice the one at paper scale, as
batches are a quarter and epochs few; it was not tuned. Width 16 was tried first and took half as long again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from varshift.trials import Trial
from varshift_lab.data import Augmentation
from varshift_lab.recipes._bn_free_binary_trials import BinaryTreatment, SignalTrial, TwoStepTrial
from varshift_lab.studies import Claim, Curve, Figure, Panel, PaperFigure, Recipe, Row, Scale, Series, Table
from varshift_lab.training import DataChoice, Network, TrainingSettings

_REPORTED = "test error from the accuracy that Ma et al. (2024, arXiv 2403.03739) report for this network"
_MEASURED = "measured earlier on the released model classes, one start; size of its batch not recorded"
# Test accuracy by network, data and norm.
_ACCURACY = {
    ("ReActNet-18", "CIFAR-10"): {"batch": 92.31, "free": 92.08},
    ("ReActNet-18", "CIFAR-100"): {"batch": 68.78, "free": 68.34},
    ("ReActNet-A", "CIFAR-10"): {"batch": 82.95, "free": 83.91},
    ("ReActNet-A", "CIFAR-100"): {"batch": 50.30, "free": 55.00},
}
_NORMS = {"batch": "batch norm", "free": "BN-free", "none": "norms taken out"}
_CIFAR_CLIP = 0.001

# After stem and blocks: mean over channels of the squared mean, and of the variance.
_SIGNAL = {
    "free": (
        (0, 0.15, 0.16, 0.20, 0.19, 0.21, 0.22, 0.25, 0.26, 0.29, 0.31, 0.33, 0.26, 0.27),
        (0.99, 0.39, 0.11, 0.12, 0.04, 0.04, 0.018, 0.025, 0.033, 0.041, 0.050, 0.059, 0.022, 0.031),
    ),
    "batch": (
        (0, 0.62, 2.4, 5.6, 9.0, 13, 17, 22, 28, 35, 43, 53, 60, 68),
        (1, 1.8, 3.7, 6.9, 8.0, 11, 9.9, 12, 16, 20, 25, 30, 27, 30),
    ),
    "none": ((), ()),
}
_LAST_NONE = (497.0, 6.1)


@dataclass(frozen=True, slots=True)
class _Case:
    """A network on a data set, and how it is trained."""

    title: tuple[str, str]
    family: str
    data: DataChoice
    settings: TrainingSettings
    clip_factor: float
    width: int | None = None

    def trial(self, norm: str, clip_factor: float | None) -> TwoStepTrial:
        """One network; the second step has no decay."""
        arguments = {} if self.width is None else {"width": self.width}
        return TwoStepTrial(
            0,
            Network.of(self.family, norm=norm, **arguments),
            self.data,
            self.settings,
            replace(self.settings, weight_decay=0.0),
            BinaryTreatment(clip_factor),
        )


def _cases(scale: Scale) -> list[_Case]:
    # Adam, its rate falling to 0 in a straight line, the decay in the first step only.
    settings = TrainingSettings(
        epochs=256,
        batch_size=256,
        learning_rate=1e-3,
        schedule="cycle",
        optimizer="adam",
        weight_decay=5e-6,
        decay_norms=False,
        augmentation=Augmentation(pad=4, border="reflect", flip=0.5),
    )
    if scale == "paper":
        sets = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
        families = {"ReActNet-18": "binary_resnet", "ReActNet-A": "reactnet"}
        return [
            _Case((net, title), family, DataChoice(name), settings, _CIFAR_CLIP)
            for net, family in families.items()
            for title, name in sets.items()
        ]
    short = replace(settings, batch_size=64, learning_rate=2e-3, augmentation=Augmentation())
    if scale == "smoke":
        data = DataChoice("digits", train=512, test=200)
        settings, width = replace(short, epochs=4), 8
    else:
        data = DataChoice("fashion_mnist", train=2000, test=2000, size=14)
        settings, width = replace(short, epochs=8), 8
    title = (f"ReActNet-18, width {width}", {"smoke": "digits", "laptop": "Fashion-MNIST"}[scale])
    return [_Case(title, "binary_resnet", data, settings, 0.02, width)]


def _seeds(scale: Scale) -> range:
    return range({"smoke": 2, "laptop": 3, "paper": 3}[scale])


def _series(scale: Scale, trial: Trial, quantity: str) -> Series:
    return Series(tuple(replace(trial, seed=seed) for seed in _seeds(scale)), quantity)


_QUANTITIES = {
    "test_error": "test error",
    "first_test_error": "test error, real-valued weights",
    "train_error_eval": "training error in eval mode",
    "train_error_train_mode": "training error in train mode",
}


def accuracy(scale: Scale) -> Table:
    """Errors with batch norm, with the paper's method, and with nothing."""
    rows = [
        Row(
            (*case.title, _NORMS[norm], text),
            _series(scale, case.trial(norm, case.clip_factor), quantity),
            PaperFigure(round(100 - known[norm], 2), _REPORTED)
            if quantity == "test_error" and norm in known
            else None,
        )
        for case in _cases(scale)
        for known in (_ACCURACY.get(case.title, {}),)
        for norm in _NORMS
        for quantity, text in _QUANTITIES.items()
    ]
    notes = {
        "smoke": "512 digits, 4 epochs for each of two steps.",
        "laptop": "2,000 images of 14 pixels, 8 epochs for each of two steps, no augmentation: where long "
        "trainings end, which the paper is about, so short ones do not say.",
        "paper": "Two steps of 256 epochs with Adam, batches of 256, rate 0.001 falling to 0: as the paper "
        "that reports the figures trains. ImageNet is left out; the paper's Figure 1 has 68.0 % BN-free, "
        "69.4 % with batch norm and 34.1 % with norms taken out, for ReActNet-A.",
    }
    return Table(
        "accuracy",
        "Binary networks: batch norm, the paper's method, and norms taken out with nothing in their place",
        ("network", "data", "norm", "figure"),
        "error, %",
        tuple(rows),
        f"Gradients are clipped in all of them, as in the released code. {notes[scale]}",
    )


def clipping(scale: Scale) -> Table:
    """What the clipping of gradients does without norms."""
    case = _cases(scale)[0]
    factors = {None: "none", 0.02: "0.02, as on ImageNet"}
    if scale == "paper":
        factors[_CIFAR_CLIP] = f"{_CIFAR_CLIP}, as on CIFAR"
    rows = [
        Row((*case.title, name), _series(scale, case.trial("free", factor), "test_error"))
        for factor, name in factors.items()
    ]
    return Table(
        "clipping",
        "BN-free networks by the factor of adaptive gradient clipping",
        ("network", "data", "factor"),
        "test error, %",
        tuple(rows),
        "0.02 is the released ImageNet scripts'; 0.001 that of another paper's CIFAR code. The paper's own "
        "for CIFAR is not known, nor are its ablations.",
    )


# ---------------------------------------------------------------------- the signal at the start


def _signal_trial(scale: Scale, norm: str) -> SignalTrial:
    if scale == "smoke":
        return SignalTrial(0, norm, size=64, samples=4, width=8)
    return SignalTrial(0, norm)


def signal(scale: Scale) -> Table:
    """Moments after the last block."""
    known = {norm: (means[-1], variances[-1]) for norm, (means, variances) in _SIGNAL.items() if means}
    known["none"] = _LAST_NONE
    rows = [
        Row(
            (_NORMS[norm], title),
            _series(scale, _signal_trial(scale, norm), quantity),
            None if scale == "smoke" else PaperFigure(value, _MEASURED),
        )
        for norm in _NORMS
        for quantity, title, value in zip(
            ("last_squared_mean", "last_variance"),
            ("squared channel mean", "channel variance"),
            known[norm],
            strict=True,
        )
    ]
    return Table(
        "signal",
        "ReActNet-A at the start: moments after its last block, means over channels",
        ("norm", "figure"),
        "squared units of a standardised input",
        tuple(rows),
        "Gaussian inputs of "
        + ("64 pixels, an eighth of the width of ReActNet-A." if scale == "smoke" else "224 pixels."),
    )


def figure_signal(scale: Scale) -> Figure:
    """Moments block by block: the second moment is what the method holds."""
    places = ("stem", *map(str, range(1, 14)))

    def curve(norm: str, quantity: str, known: tuple[float, ...]) -> Curve:
        series = _series(scale, _signal_trial(scale, norm), quantity)
        return Curve(_NORMS[norm], (series,), places, () if scale == "smoke" else known)

    known = {
        norm: {"second_moment": tuple(map(sum, zip(*pair, strict=True))), "variance": pair[1]}
        for norm, pair in _SIGNAL.items()
    }
    titles = {"second_moment": "mean second moment", "variance": "mean channel variance"}
    panels = tuple(
        Panel(
            title,
            tuple(curve(norm, quantity, known[norm][quantity]) for norm in _NORMS),
            "block",
            "moment",
            log_y=True,
        )
        for quantity, title in titles.items()
    )
    return Figure(
        "signal-by-block",
        "The signal of ReActNet-A at the start",
        panels,
        note=f"Hollow markers: {_MEASURED}." if scale != "smoke" else "",
    )


def training(scale: Scale) -> Figure:
    """Losses of both steps."""
    panels = []
    for case in _cases(scale)[:2]:
        for prefix, step in (("first_", "real-valued weights"), ("", "binary weights")):
            curves = []
            for norm in _NORMS:
                trial = case.trial(norm, case.clip_factor)
                epochs = tuple(float(epoch) for epoch in range(1, trial.second.epochs + 1))
                series = _series(scale, trial, f"{prefix}train_loss_history")
                curves.append(Curve(_NORMS[norm], (series,), epochs))
            panels.append(Panel(f"{case.title[1]}: {step}", tuple(curves), "epoch", "training loss"))
    return Figure("training", "Training in two steps", tuple(panels))


def claims(scale: Scale) -> tuple[Claim, ...]:
    """Within reach of batch norm, and far better than nothing."""
    found = []
    for case in _cases(scale):
        free, batch, none = (
            _series(scale, case.trial(norm, case.clip_factor), "test_error")
            for norm in ("free", "batch", "none")
        )
        name = " on ".join(case.title)
        found += [
            Claim(
                f"{name}: BN-free is within 2 points of batch norm",
                free,
                batch,
                margin=2.0,
                source="CIFAR figures that Ma et al. (2024) report, from 0.23 points worse to 4.7 better",
            ),
            Claim(
                f"{name}: BN-free is better than taking the norms out",
                free,
                none,
                source="Figure 1, ImageNet: 68.0 against 34.1 %",
            ),
        ]
    return tuple(found)


RECIPE = Recipe(
    name="bn-free-binary",
    title="BNN - BN = ? Training Binary Neural Networks without Batch Normalization",
    source="T. Chen, Z. Zhang, X. Ouyang, Z. Liu, Z. Shen, Z. Wang, CVPR workshops 2021, arXiv 2104.08215",
    tables={"accuracy": accuracy, "clipping": clipping, "signal": signal},
    figures={"signal-by-block": figure_signal, "training": training},
    claims=claims,
)
