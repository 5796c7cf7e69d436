"""How wrong predictions are on small networks of many kinds, and how well that is known of each.

Every network (`_varied`) is trained for some steps on a part of CIFAR-10 or Fashion-MNIST. Two predictions
without data are compared with what its norms see: with fresh statistics (pooled over 512 images and four
draws of the noise), and with those that training left (moving averages). Even numbers are the half of the
networks from which the limits of the confidence were set, odd ones are held out.

Run ``python benchmarks/confidence.py --networks 72``; what has been measured is kept in ``.trained/`` and not
measured again, ``--table`` only reads it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import varshift as vs
from _networks import folder, stored
from _observed import NORMS, observe
from _varied import Recipe, build, recipe
from varshift_lab.data import cifar10, fashion_mnist

STORE = Path(__file__).parent / ".trained" / "varied"
IMAGES, TRUTH, DRAWS, RATE = 4096, 512, 4, 0.05
LIMITS = {"high": 0.03, "medium": 0.10}  # errors that nine of ten norms of a class are to stay under


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
    row["fresh"] = figures(net, shape)
    return row | {f"measured_{key}": value for key, value in truth.items()} | {"halves": truth["halves"]}


def main() -> None:
    """Measures what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=72)
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


if __name__ == "__main__":
    main()
