"""Predicted against measured shift, norm by norm, with the two baselines that a user would try.

Run by itself, whole or in parts: ``python benchmarks/moments.py [digits] [cifar] [zoo] [cost] [--quick]``.
CIFAR-10 is read from the folder that ``VARSHIFT_DATA`` names, or that lies beside the checkout.

What is measured: all images of a network's truth as one batch, eight draws of the noise in training; their
pooled statistics become the running statistics; then one pass each in `eval` and in `clean`. So the truth has
neither the moving average in it nor the noise of small batches. Trained networks and truths are kept in
``.trained/``, so that another run only predicts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import varshift as vs
from _diagonal import Diagonal, Figures
from _networks import RECIPES, cifar_network, digits_network, folder
from _observed import NORMS, observed
from _timing import in_turn, ratio, show, table, write
from varshift.integrations import declare_torchvision_operators
from varshift_lab.data import cifar10, digits

DRAWS = 8  # of the noise, for the truth
SEEDS = 3  # of the made-up inputs and their noise: the errors of `anchored` are those of all together
HEADER = [
    "network",
    "norms",
    "measured ratio",
    "its own error",
    "anchored: ratio",
    "local",
    "first",
    "hybrid: ratio",
    "local",
    "first",
    "sampling: ratio",
    "local",
    "diagonal: ratio",
]


def compare(name: str, net: nn.Module, truth: Tensor, few: Tensor) -> list[str]:
    """One row: errors of the ratio (and of the local ratio) over all norms that noise reaches.

    Args:
        name: Name of the row.
        net: The trained network.
        truth: The images that are measured.
        few: 256 others, for `hybrid` and for plain sampling.
    """
    sampled = observed(name, net, few, 1)["figures"]
    seen = observed(name, net, truth, DRAWS)
    measured = seen["figures"]
    anchored = [vs.predict(net, shape=tuple(truth.shape[1:]), seed=seed) for seed in range(SEEDS)]
    hybrid = vs.predict(net, few)
    noisy = [layer.name for layer in hybrid.layers if layer.noise and layer.name in measured]
    flow = session_of(hybrid).train
    first = {site.nearest for site in flow.noises}
    row = [
        name,
        str(len(noisy)),
        f"{min(measured[n][0] for n in noisy):.2f} to {max(measured[n][0] for n in noisy):.2f}",
        errors(seen["halves"][:1], seen["halves"][1], noisy, 0, share=0.5),
    ]
    for predictions in (anchored, [hybrid]):
        figures = [
            {layer.name: (layer.ratio, layer.local_ratio) for layer in prediction.layers}
            for prediction in predictions
        ]
        row += [errors(figures, measured, noisy, 0), errors(figures, measured, noisy, 1)]
        row.append(errors(figures, measured, [n for n in noisy if n in first], 1))
    row += [errors([sampled], measured, noisy, 0), errors([sampled], measured, noisy, 1)]
    try:
        row.append(errors([Diagonal(net, flow, truth).run()], measured, noisy, 0))
    except (KeyError, ValueError, RuntimeError, TypeError, IndexError):
        row.append("cannot")
    print(" | ".join(row), flush=True)
    return row


def session_of(prediction: vs.Prediction) -> Any:
    """The captured network behind a prediction."""
    return prediction._source


def errors(
    predicted: Sequence[Figures], measured: Figures, names: Iterable[str], which: int, *, share: float = 1.0
) -> str:
    """Median and 95th percentile of the relative errors, or of a share of them."""
    found = [
        share * abs(figures[name][which] / measured[name][which] - 1)
        for name in names
        for figures in predicted
        if name in figures
    ]
    return f"{np.median(found):.1%} / {np.quantile(found, 0.95):.1%}" if found else "none"


def run_digits(quick: bool) -> Iterator[list[str]]:
    """PreResNet-20 of width 8 with dropout (a) and (b)."""
    data = digits()
    for placement in ("a", "b"):
        for rate in (0.3,) if quick else (0.1, 0.3, 0.5):
            net = digits_network(placement, rate, quick)
            few = data.train_images[:256]
            yield compare(f"digits PreResNet-20, ({placement}) {rate}", net, data.train_images[256:], few)


def run_cifar(quick: bool) -> Iterator[list[str]]:
    """Networks trained for some epochs on a part of CIFAR-10."""
    others = cifar10(folder(), batches=1).normalised()[-1280:]
    for name in list(RECIPES)[: 1 if quick else None]:
        yield compare(f"CIFAR-10 {name}", cifar_network(name, quick), others[:1024], others[1024:])


ZOO: dict[str, dict[str, float]] = {
    "resnet18": {"drop_path_rate": 0.2},
    "resnet26d": {"drop_block_rate": 0.1},
    "densenet121": {"proj_drop_rate": 0.2},
    "efficientnet_b0": {"drop_path_rate": 0.2},
    "mobilenetv3_large_100": {"drop_path_rate": 0.2},
    "mobilenetv2_100": {"drop_path_rate": 0.2},
    "regnetx_002": {"drop_path_rate": 0.2},
    "regnety_002": {"drop_path_rate": 0.2},
    "seresnet18": {"drop_path_rate": 0.2},
    "mixnet_s": {"drop_path_rate": 0.2},
    "resnext26ts": {"drop_path_rate": 0.2},
    # Added late, when most of the method was as it is.
    "tf_efficientnetv2_b0": {"drop_path_rate": 0.2},
    "cspresnet50": {"drop_path_rate": 0.2},
    "gernet_s": {"drop_path_rate": 0.2},
}
AS_BUILT: dict[str, dict[str, float]] = {  # with the norms that timm gives them, 1 and 0
    "efficientnet_b0": {"drop_path_rate": 0.2},
    "densenet121": {"proj_drop_rate": 0.3},
}
_SIZE = 64  # pixels, of all rows but these
LARGE = [("efficientnet_b0", 128), ("efficientnet_b0", 224)]


def _spread_norms(net: nn.Module) -> None:
    """Random weights and biases of norms: at the start many are 0, and no branch would say anything."""
    for module in net.modules():
        if isinstance(module, NORMS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)


def run_zoo(quick: bool) -> Iterator[list[str]]:
    """Architectures of timm with random weights; statistics from CIFAR-10, enlarged."""
    declare_torchvision_operators()
    import timm

    small = cifar10(folder(), batches=1).normalised()[:512]
    rows = [(name, noise, True, _SIZE) for name, noise in ZOO.items()]
    rows += [(name, noise, False, _SIZE) for name, noise in AS_BUILT.items()]
    rows += [(name, ZOO[name], True, size) for name, size in LARGE]
    for name, noise, spread, size in rows[: 2 if quick else None]:
        images = F.interpolate(small, size=size, mode="bilinear")
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=10, **noise)
        if spread:
            _spread_norms(net)
        kind, rate = next(iter(noise.items()))
        title = f"{name}{'' if spread else ' as built'}{'' if size == _SIZE else f' at {size} pixels'}"
        try:
            yield compare(f"{title}, {kind} {rate}", net, images[:256], images[256:])
        except ValueError as error:
            print(name, error, flush=True)


def run_cost(quick: bool) -> list[list[str]]:
    """Time of a prediction and of `what_if` against a forward pass of batch 32 at 224 pixels, and memory."""
    declare_torchvision_operators()
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18" if quick else "resnet50", drop_path_rate=0.2)
    _spread_norms(net)  # as built, branches end in a factor of 0: no noise would come out of them
    with torch.no_grad():
        net(torch.randn(4, 3, 224, 224))
    batch = torch.randn(32, 3, 224, 224)
    prediction = vs.predict(net, shape=(3, 224, 224))
    session = session_of(prediction)  # captured once: the capture is not timed
    site = next(iter(prediction.rates))

    def forward() -> None:
        with torch.no_grad():
            net.eval()(batch)

    def again() -> None:
        session.anchors = session.base = None
        session.predict({})

    def first() -> None:
        session.answers = None
        prediction.what_if({site: 0.1})

    seconds = in_turn(
        {
            "forward": forward,
            "predict": again,
            "first": first,
            "what_if": lambda: prediction.what_if({site: 0.1}),
        },
        1 if quick else 7,
    )
    row = [net.default_cfg["architecture"], f"{statistics.median(seconds['forward']):.2f} s"]
    row += [show(ratio(seconds, above, "forward")) for above in ("predict", "first", "what_if")]
    row.append(f"{_peak(session):.1f}")
    print(" | ".join(row), flush=True)
    return [row]


_PARTS = ("mean", "variance", "draw")  # tensors of a signal


def _peak(session: Any) -> float:
    """Elements that a prediction keeps at the same time, over those of its samples at the widest layer."""
    kept: list[int] = []
    widest = max(int(np.prod(node.shape or ())) for node in session.train.nodes if node.kind == "weight")

    def elements(value: Any) -> int:
        if isinstance(value, (tuple, list)):
            return sum(map(elements, value))
        parts = [value] if isinstance(value, Tensor) else [getattr(value, name, None) for name in _PARTS]
        return sum(part.numel() for part in parts if isinstance(part, Tensor))

    def watch(_: str, run: Any) -> None:
        ours = [node.index for node in run.flow.nodes if node.kind not in ("parameter", "buffer", "constant")]
        run.watch = lambda _: kept.append(sum(elements(run.values.get(index)) for index in ours))

    session.follow({}, watch)
    return max(kept) / widest


TEXT = (
    "Relative errors, median / 95th percentile over all norms that noise reaches. `ratio` is deployed over "
    "learned, `local` is clean over learned, `first` is the local ratio at the first norm behind each noise "
    "site. `its own error` is that of the measured ratio: half the difference between the two halves of the "
    "draws. `anchored` uses no data, and its errors are those of three seeds together; `hybrid` and sampling "
    "(one batch in training, one in evaluation) use the same 256 images, which are not among those measured; "
    "`diagonal` is the papers' propagation of one mean and one variance per channel."
)


def main() -> None:
    """Runs the parts that were asked for and writes one table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["digits", "cifar", "zoo", "cost"])
    parser.add_argument("--quick", action="store_true", help="smaller networks, less training, fewer rows")
    arguments = parser.parse_args()
    runs = {"digits": run_digits, "cifar": run_cifar, "zoo": run_zoo, "cost": run_cost}
    for part in arguments.parts:
        if part == "cost":
            header = [
                "network",
                "forward, batch 32 at 224",
                "prediction / forward",
                "first what_if / forward",
                "what_if / forward",
                "kept at once",
            ]
            text = (
                "After capture; medians and quartiles of the rounds. `first what_if` follows the network "
                "twice more, all others do not. `kept at once`: most elements that a pass keeps, over "
                "those of its samples at the widest layer."
            )
        else:
            header, text = HEADER, TEXT
        name = "moments_" + part + ("_quick" if arguments.quick else "")
        rows: list[list[str]] = []
        for row in runs[part](arguments.quick):
            rows.append(row)  # stored row by row, since some take minutes
            write(name, f"Predicted against measured: {part}", f"{text}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
