"""How wrong predictions are on small networks of many kinds, and how well that is known of each.

Every network (`_varied`) is trained for some steps on a part of CIFAR-10 or Fashion-MNIST. Two predictions
without data are compared with what its norms see: with fresh statistics (pooled over 512 images and four
draws of the noise), and with those that training left (moving averages). The limits of the confidence were
set on the first 24 networks; the others, drawn by the same rules, are held out.

Run ``python benchmarks/confidence.py --networks 48``; what has been measured is kept in ``.trained/`` and not
measured again. ``--table`` writes the tables from it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import varshift as vs
from _networks import folder, stored
from _observed import NORMS, observe
from _timing import table, write
from _varied import Recipe, build, recipe
from varshift_lab.data import cifar10, fashion_mnist

STORE = Path(__file__).parent / ".trained" / "varied"
IMAGES, TRUTH, DRAWS, RATE = 4096, 512, 4, 0.05
SETTING = 24  # networks from which the limits were set


@cache
def originals(data: str) -> tuple[Tensor, Tensor]:
    """The first images of a data set, and their classes."""
    if data == "CIFAR-10":
        found = cifar10(folder(), batches=1)
    else:
        found = fashion_mnist(folder().parent / "fashion_mnist")
    few = slice(0, IMAGES + TRUTH)
    return found.pixels[few].float(), found.labels[few].clone()


def images_of(given: Recipe) -> tuple[Tensor, Tensor]:
    """Images at the size of a network, standardised, and their classes."""
    pixels, labels = originals(given.data)
    pixels = F.adaptive_avg_pool2d(pixels, given.size)
    axes = (0, 2, 3)
    return (pixels - pixels.mean(axes, keepdim=True)) / pixels.std(axes, keepdim=True), labels


def trained(given: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """The network after its steps; its weights are kept."""
    net = build(given)

    def weights() -> dict[str, Tensor]:
        optimiser = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        order = torch.Generator().manual_seed(given.number)
        for step in range(given.steps):
            if given.decays:
                optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / given.steps))
            index = torch.randint(IMAGES, (given.batch,), generator=order)
            loss = F.cross_entropy(net.train()(images[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
        return net.state_dict()

    net.load_state_dict(stored(f"varied_{given.number}", weights))
    return net


def deployed(net: nn.Module, images: Tensor) -> dict[str, tuple[float, float]]:
    """Variance in `eval` over the learned one at every norm, and the latter."""
    found: dict[str, tuple[float, float]] = {}
    hooks = []
    for name, norm in net.named_modules():
        if isinstance(norm, NORMS):

            def note(norm: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                axes = tuple(axis for axis in range(args[0].dim()) if axis != 1)
                learned = float(dict(norm.named_buffers())["running_var"].mean())
                found[name] = (float(args[0].double().var(axes, correction=0).mean()) / learned, learned)

            hooks.append(norm.register_forward_pre_hook(note))
    with torch.no_grad():
        net.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def figures(net: nn.Module, shape: Sequence[int]) -> list[dict[str, Any]]:
    """What is predicted for each norm, and all that might tell how sure it is."""
    prediction = vs.predict(net, shape=tuple(shape))
    source: Any = prediction._source
    rows = []
    for layer in prediction.layers:
        row: dict[str, Any] = {
            key: getattr(layer, key)
            for key in ("name", "ratio", "local_ratio", "mean_offset", "noise_share", "confidence")
        }
        row["sites"] = len(layer.noise)
        made = source.base.anchors.get((layer.name, 0))
        if made is not None:
            row["doubts"], row["first"] = sorted(made.doubts), made.first
            alive = made.variance > 1e-6 * made.variance.mean()
            apart = ((made.centre - made.channels_mean).square() / made.variance.clamp_min(1e-20))[alive]
            row["mean apart"] = float(apart.mean().sqrt())
            gains = made.gain.clamp_min(1e-6).log()[alive]
            row["gain"], row["gain spread"] = float(gains.mean()), float(gains.std(correction=0))
            row["louder"] = 0.0 if made.louder is None else float(made.louder.log().abs().mean())
        site = next(site for site in source.train.norms if site.name == layer.name)
        row["shape"] = list(site.shapes[0])
        rows.append(row)
    return rows


def measured(number: int) -> dict[str, Any]:
    """What the norms of one network see, and the network's state with fresh statistics."""
    given = recipe(number)
    images, labels = images_of(given)
    net = trained(given, images, labels)
    truth = images[IMAGES:]
    seen = deployed(net, truth)
    observed = observe(net, truth, DRAWS)
    return {
        "shipped": {name: ratio for name, (ratio, _) in seen.items()},
        "fresh": {name: list(map(float, pair)) for name, pair in observed["figures"].items()},
        "halves": [{name: list(map(float, p)) for name, p in half.items()} for half in observed["halves"]],
        "state": observed["state"],
    }


def predicted(number: int) -> dict[str, Any]:
    """Predictions and measurements of one network."""
    given = recipe(number)
    truth = stored(f"varied_{number}_truth", lambda: measured(number))
    net = build(given)
    shape = (3 if given.data == "CIFAR-10" else 1, given.size, given.size)
    net.load_state_dict(stored(f"varied_{number}", dict))
    row: dict[str, Any] = {"number": number, "name": given.name, "steps": given.steps}
    row |= {"batch": given.batch, "decays": given.decays, "shipped": figures(net, shape)}
    net.load_state_dict(truth.pop("state"))
    for name, count in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            count.zero_()  # they were pooled: how long the training was says nothing of them
    row["fresh"] = figures(net, shape)
    return row | {f"measured_{key}": value for key, value in truth.items()} | {"halves": truth["halves"]}


@dataclass(frozen=True)
class Norm:
    """One norm that noise reaches: what was predicted for it, and how wrong that is.

    Attributes:
        held_out: Whether its network had no part in setting the limits.
        error: Relative error of the predicted ratio against that of fresh statistics.
        shipped: The same against the ratio measured with the statistics that training left.
    """

    number: int
    held_out: bool
    steps: int
    confidence: str
    error: float
    shipped: float | None


def norms(which: str) -> list[Norm]:
    """All norms of all networks measured so far, predicted from ``"fresh"`` or ``"shipped"`` statistics."""
    found = []
    for path in sorted(STORE.glob("*.json"), key=lambda path: int(path.stem)):
        row = json.loads(path.read_text())
        for figures in row[which]:
            ratio, name = figures["ratio"], figures["name"]
            if figures["sites"] and ratio is not None:
                error = abs(ratio / row["measured_fresh"][name][0] - 1)
                shipped = abs(ratio / row["measured_shipped"][name] - 1) if which == "shipped" else None
                number = int(path.stem)
                held = number >= SETTING
                found.append(Norm(number, held, row["steps"], figures["confidence"], error, shipped))
    return found


def share(errors: Sequence[float | None], limit: float) -> str:
    """The share of errors under a limit."""
    known = [error for error in errors if error is not None]
    return f"{np.mean(np.array(known) < limit):.0%}" if known else "-"


def classes(chosen: Sequence[Norm], name: str) -> list[list[str]]:
    """A row per class of confidence."""
    rows = []
    for confidence in ("high", "medium", "low"):
        errors = [norm.error for norm in chosen if norm.confidence == confidence]
        networks = len({norm.number for norm in chosen if norm.confidence == confidence})
        if errors:
            middle, most = np.median(errors), np.quantile(errors, 0.9)
            row = [name, confidence, f"{len(errors)} of {networks}", f"{middle:.1%} / {most:.1%}"]
            rows.append([*row, share(errors, 0.03), share(errors, 0.1)])
    return rows


def page() -> str:
    """The tables."""
    header = ["networks", "confidence", "norms of networks", "error: median / 90th percentile"]
    header += ["within 3%", "within 10%"]
    rows = []
    for which, words in (("fresh", "fresh statistics"), ("shipped", "statistics as trained")):
        found = norms(which)
        for held, half in ((False, "setting half"), (True, "held out")):
            rows += classes([norm for norm in found if norm.held_out == held], f"{words}, {half}")
    lag = []
    shipped = norms("shipped")
    for steps in sorted({norm.steps for norm in shipped}):
        chosen = [norm for norm in shipped if norm.steps == steps]
        of_fresh = [norm.error for norm in chosen]
        as_shipped = [norm.shipped for norm in chosen if norm.shipped is not None]
        lag.append(
            [str(steps), f"{len(chosen)} of {len({norm.number for norm in chosen})}"]
            + [f"{np.median(e):.1%} / {np.quantile(e, 0.9):.1%}" for e in (of_fresh, as_shipped)]
        )
    return "\n\n".join(
        [
            "Relative error of the predicted ratio, without data, at the norms that noise reaches "
            "(`python benchmarks/confidence.py`). What is measured: the ratio with fresh statistics.",
            table(header, rows),
            "Predictions from statistics as trained, by the number of updates that these have seen: their "
            "error against the ratio of fresh statistics, and against that of the statistics themselves.",
            table(["updates", "norms of networks", "against fresh", "against as shipped"], lag),
        ]
    )


def main() -> None:
    """Measures what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=48)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="predict again, with weights as they are kept")
    parser.add_argument("--table", action="store_true", help="only read what has been measured")
    arguments = parser.parse_args()
    STORE.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.start, 0 if arguments.table else arguments.networks):
        path = STORE / f"{number}.json"
        if arguments.again or not path.exists():
            path.write_text(json.dumps(predicted(number)))
            print(recipe(number).name, flush=True)
    if arguments.table:
        write("confidence", "How sure predictions are", page())


if __name__ == "__main__":
    main()
