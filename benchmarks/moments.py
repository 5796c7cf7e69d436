"""Predicted against measured shift, norm by norm, with the two baselines that a user would try.

Run by itself, whole or in parts: ``python benchmarks/moments.py [digits] [cifar] [zoo] [cost] [--quick]``.
CIFAR-10 is read from the folder that ``VARSHIFT_DATA`` names, or that lies beside the checkout.

What is measured: all images of a network's truth as one batch, four draws of the noise in training; their
pooled statistics become the running statistics; then one pass each in `eval` and in `clean`. So the truth has
neither the moving average in it nor the noise of small batches.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import varshift as vs
from _timing import in_turn, ratio, show, table, write
from varshift.flow import Flow, Node, Ref
from varshift.integrations import declare_torchvision_operators
from varshift.moments import _elementwise
from varshift.moments._operators import base_name, bound
from varshift.theory import noise_variance
from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import cifar10, digits, tensor_loader
from varshift_lab.networks import preresnet
from varshift_lab.networks._parts import DropPath

Figures = dict[str, tuple[float, float]]  # ratio and local ratio of every norm
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
HEADER = [
    "network",
    "norms",
    "measured ratio",
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


def observe(net: nn.Module, images: Tensor, draws: int) -> tuple[Figures, nn.Module]:
    """Ratio and local ratio of all norms, and a copy of the network that holds the statistics of training."""
    net = copy.deepcopy(net)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, NORMS)}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            axes = tuple(axis for axis in range(args[0].dim()) if axis != 1)
            variance, mean = torch.var_mean(args[0].double(), axes, correction=0)
            seen[name] = (mean, variance)

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in norms.items()]

    def run() -> dict[str, tuple[Tensor, Tensor]]:
        seen.clear()
        with torch.no_grad():
            net(images)
        return dict(seen)

    net.train()
    for norm in norms.values():
        norm.momentum = 0.0
    runs = [run() for _ in range(draws)]
    learned = {}
    for name in runs[0]:
        means = torch.stack([found[name][0] for found in runs])
        variances = torch.stack([found[name][1] for found in runs])
        learned[name] = (means.mean(0), variances.mean(0) + means.var(0, correction=0))
    net.eval()
    for norm in norms.values():
        norm.train()
    clean = run()
    for name, (mean, variance) in learned.items():
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_(variance)
    net.eval()
    deployed = run()
    for hook in hooks:
        hook.remove()
    size = {name: float(variance.mean()) for name, (_, variance) in learned.items()}
    return {
        name: (float(deployed[name][1].mean()) / size[name], float(clean[name][1].mean()) / size[name])
        for name in learned
    }, net


class Diagonal:
    """The papers' propagation: one mean and one variance per channel, all units independent.

    Three views are carried: in training with its noise, in `eval`, and in `clean`.
    """

    def __init__(self, net: nn.Module, flow: Flow, images: Tensor) -> None:
        self.flow = flow
        self.tensors = dict(net.named_parameters()) | dict(net.named_buffers())
        self.values: dict[int, Any] = {}
        self.figures: Figures = {}
        self.start = (images.mean((0, 2, 3)).double(), images.var((0, 2, 3)).double())
        self.norms = {index: site.name for site in flow.norms for index in site.calls}
        self.sites = {site.node: site for site in flow.noises}

    def run(self) -> Figures:
        """Ratio and local ratio of all norms."""
        with torch.no_grad():
            for node in self.flow.nodes:
                if node.kind == "input":
                    self.values[node.index] = (self.start,) * 3
                elif node.kind in ("parameter", "buffer"):
                    self.values[node.index] = self.tensors[node.target or ""].detach().double()
                elif node.kind != "output":
                    self.values[node.index] = self._call(node)
        return self.figures

    def _call(self, node: Node) -> Any:
        named = {key: self._fill(value) for key, value in bound(node).items()}
        views = [value for value in named.values() if _is_views(value)]
        listed = [
            value for value in named.values() if isinstance(value, (list, tuple)) and not _is_views(value)
        ]
        name = base_name(node)
        if node.index in self.sites:
            found = [self.values[i] for i in node.inputs if _is_views(self.values.get(i))]
            site = self.sites[node.index]
            mean, variance = found[0][0]
            noise = noise_variance(site.kind, site.rate or 0.0)
            return ((mean, variance + noise * (variance + mean * mean)), *found[0][1:])
        if node.index in self.norms:
            return self._norm(self.norms[node.index], views[0], named)
        if name in ("conv2d", "linear"):
            return tuple(self._weight(view, named) for view in views[0])
        if name == "add" and len(views) == 2:
            return tuple((a[0] + b[0], a[1] + b[1]) for a, b in zip(*views, strict=True))
        if name == "cat":
            parts = next(value for value in listed if value and _is_views(value[0]))
            return tuple(
                (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
                for i in range(3)
            )
        if not views:
            return None
        if name in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
            before = self.flow.nodes[node.inputs[0]].shape or (1, 1, 1, 1)
            after = (*(node.shape or ()), 1, 1)[2:4]
            share = float(np.prod(after) / np.prod(before[2:]))
            return tuple((mean, variance * share) for mean, variance in views[0])
        if name in _elementwise.CLOSED_FORMS:
            rule = _elementwise.CLOSED_FORMS[name]
            return tuple(rule(mean, variance, named) for mean, variance in views[0])
        return views[0]  # views of the same values, and max-pooling, which the papers treat by a chain

    def _fill(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values.get(value.index)
        if isinstance(value, (list, tuple)):
            return [self._fill(item) for item in value]
        return value

    def _weight(self, view: tuple[Tensor, Tensor], named: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        weight, bias = named["weight"], named.get("bias")
        if weight.dim() == 2:
            mean, variance = F.linear(view[0], weight), F.linear(view[1], weight.square())
        else:
            groups, wide = int(named.get("groups", 1)), [part[None, :, None, None] for part in view]
            first = F.conv2d(wide[0], weight.sum((2, 3), keepdim=True), groups=groups)
            second = F.conv2d(wide[1], weight.square().sum((2, 3), keepdim=True), groups=groups)
            mean, variance = first.flatten(), second.flatten()
        return (mean if bias is None else mean + bias), variance

    def _norm(self, name: str, views: Any, named: Mapping[str, Any]) -> Any:
        (mean, learned), deployed, clean = views
        size = float(learned.mean())
        self.figures[name] = (float(deployed[1].mean()) / size, float(clean[1].mean()) / size)
        eps = float(named["eps"])
        found = []
        for view, (centre, spread) in ((views[0], views[0]), (deployed, (mean, learned)), (clean, clean)):
            scale = named["weight"] * (spread + eps).rsqrt()
            found.append(((view[0] - centre) * scale + named["bias"], view[1] * scale.square()))
        return tuple(found)


def _is_views(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and isinstance(value[0], tuple)


def compare(name: str, net: nn.Module, truth: Tensor, few: Tensor) -> list[str]:
    """One row: errors of the ratio (and of the local ratio) over all norms that noise reaches.

    Args:
        name: Name of the row.
        net: The trained network.
        truth: The images that are measured.
        few: 256 others, for `hybrid` and for plain sampling.
    """
    torch.manual_seed(0)
    measured, net = observe(net, truth, 4)
    anchored = vs.predict(net, shape=tuple(truth.shape[1:]))
    hybrid = vs.predict(net, few)
    sampled, _ = observe(net, few, 1)
    noisy = [layer.name for layer in anchored.layers if layer.noise and layer.name in measured]
    flow = session_of(anchored).train
    first = {site.nearest for site in flow.noises}
    row = [
        name,
        str(len(noisy)),
        f"{min(measured[n][0] for n in noisy):.2f} to {max(measured[n][0] for n in noisy):.2f}",
    ]
    for prediction in (anchored, hybrid):
        figures = {layer.name: (layer.ratio, layer.local_ratio) for layer in prediction.layers}
        row += [errors(figures, measured, noisy, 0), errors(figures, measured, noisy, 1)]
        row.append(errors(figures, measured, [n for n in noisy if n in first], 1))
    row += [errors(sampled, measured, noisy, 0), errors(sampled, measured, noisy, 1)]
    try:
        row.append(errors(Diagonal(net, flow, truth).run(), measured, noisy, 0))
    except (KeyError, ValueError, RuntimeError, TypeError, IndexError):
        row.append("cannot")
    print(" | ".join(row), flush=True)
    return row


def session_of(prediction: vs.Prediction) -> Any:
    """The captured network behind a prediction."""
    return prediction._again.__self__  # type: ignore[union-attr]


def errors(figures: Figures, measured: Figures, names: Iterable[str], which: int) -> str:
    """Median and 95th percentile of the relative errors."""
    found = [abs(figures[name][which] / measured[name][which] - 1) for name in names if name in figures]
    return f"{np.median(found):.1%} / {np.quantile(found, 0.95):.1%}" if found else "none"


def trained(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """A network after some epochs."""
    torch.manual_seed(0)
    loader = tensor_loader(images, labels, 64, shuffle=True, drop_last=True)
    train(net, loader, TrainingSettings(epochs=epochs, learning_rate=0.1, weight_decay=5e-4))
    return net


def run_digits(quick: bool) -> list[list[str]]:
    """PreResNet-20 of width 8 with dropout (a) and (b)."""
    data = digits()
    rows = []
    for placement in ("a", "b"):
        for rate in (0.3,) if quick else (0.1, 0.3, 0.5):
            torch.manual_seed(0)
            net = preresnet(20, 10, dropout=rate, placement=placement, in_channels=1, width=8)
            trained(net, data.train_images, data.train_labels, 4 if quick else 12)
            few = data.train_images[:256]
            rows.append(
                compare(f"digits PreResNet-20, ({placement}) {rate}", net, data.train_images[256:], few)
            )
    return rows


def _swapped(net: nn.Module, make: Callable[[float], nn.Module]) -> nn.Module:
    """The same network with another kind of noise in place of its dropout."""
    for name, module in list(net.named_modules()):
        if type(module) is nn.Dropout:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, make(module.p))
    return net


def _with_drop_path(net: nn.Module, rate: float) -> nn.Module:
    for stage in net.stages:
        for block in stage:
            block.conv2 = nn.Sequential(block.conv2, DropPath(rate))
    return net


class DenseNet(nn.Module):
    """Three dense blocks of ``norm relu conv dropout``, as in DenseNet-BC without bottlenecks."""

    def __init__(self, layers: int, growth: int, dropout: float) -> None:
        super().__init__()
        channels = 2 * growth
        stages: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for stage in range(3):
            for _ in range(layers):
                stages.append(_DenseLayer(channels, growth, dropout))
                channels += growth
            if stage < 2:
                stages += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1)]
                stages += [nn.Dropout(dropout), nn.AvgPool2d(2)]
        head = [
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 10),
        ]
        self.layers = nn.Sequential(*stages, *head)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.layers(x)


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.drop(self.conv(F.relu(self.norm(x))))], 1)


def vgg(dropout: float) -> nn.Module:
    """A VGG with batch norm and dropout behind its activations, at a quarter of the width."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, 0, 32, 32, 0, 64, 64, 64, 0, 128, 128):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
        ]
        channels = width
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def run_cifar(quick: bool) -> list[list[str]]:
    """Networks trained for some epochs on a part of CIFAR-10."""
    data = cifar10(_folder(), batches=1)
    count = 1024 if quick else 5120
    images, labels = data.normalised()[:count], data.labels[:count]
    others = data.normalised()[-1280:]
    nets: dict[str, Callable[[], nn.Module]] = {
        "PreResNet-20, (b) .3": lambda: preresnet(20, 10, dropout=0.3, placement="b"),
        "PreResNet-20, channel dropout .1": lambda: _swapped(
            preresnet(20, 10, dropout=0.1, placement="b"), nn.Dropout2d
        ),
        "PreResNet-20, drop path .2": lambda: _with_drop_path(preresnet(20, 10), 0.2),
        "wide PreResNet-14, width 32, (b) .3": lambda: preresnet(
            14, 10, dropout=0.3, placement="b", width=32
        ),
        "DenseNet, 3 x 5 layers, growth 12, .2": lambda: DenseNet(5, 12, 0.2),
        "VGG with norms, width 16, .2": lambda: vgg(0.2),
    }
    rows = []
    for name, make in nets.items():
        torch.manual_seed(0)
        net = trained(make(), images, labels, 1 if quick else 2)
        rows.append(compare(f"CIFAR-10 {name}", net, others[:1024], others[1024:]))
    return rows


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
    "ghostnet_050": {"drop_rate": 0.2},
    "resnext26ts": {"drop_path_rate": 0.2},
}


def _spread_norms(net: nn.Module) -> None:
    """Random weights and biases of norms: at the start many are 0, and no branch would say anything."""
    for module in net.modules():
        if isinstance(module, NORMS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)


def run_zoo(quick: bool) -> list[list[str]]:
    """Architectures of timm with random weights; statistics from CIFAR-10 at 64 pixels."""
    declare_torchvision_operators()
    import timm

    images = cifar10(_folder(), batches=1).normalised()[:384]
    images = F.interpolate(images, size=64, mode="bilinear")
    rows = []
    for name, noise in list(ZOO.items())[: 2 if quick else None]:
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=10, **noise)
        _spread_norms(net)
        kind, rate = next(iter(noise.items()))
        try:
            rows.append(compare(f"{name}, {kind} {rate}", net, images[:256], images[256:]))
        except ValueError as error:
            print(name, error, flush=True)
    return rows


def run_cost(quick: bool) -> list[list[str]]:
    """Time of a prediction and of `what_if` against a forward pass of batch 32 at 224 pixels."""
    declare_torchvision_operators()
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18" if quick else "resnet50", drop_path_rate=0.2)
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
        session.anchors = None
        session.predict({})

    seconds = in_turn(
        {"forward": forward, "predict": again, "what_if": lambda: prediction.what_if({site: 0.1})}, 3
    )
    row = [net.default_cfg["architecture"], f"{statistics.median(seconds['forward']):.2f} s"]
    row += [show(ratio(seconds, above, "forward")) for above in ("predict", "what_if")]
    print(" | ".join(row), flush=True)
    return [row]


def _folder() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("VARSHIFT_DATA", default)) / "cifar10"


TEXT = (
    "Relative errors, median / 95th percentile over all norms that noise reaches. `ratio` is deployed over "
    "learned, `local` is clean over learned, `first` is the local ratio at the first norm behind each noise "
    "site. `anchored` uses no data; `hybrid` and sampling (one batch in training, one in evaluation) use the "
    "same 256 images (128 for the zoo), which are not among those measured; `diagonal` is the papers' "
    "propagation of one mean and one variance per channel."
)


def main() -> None:
    """Runs the parts that were asked for and writes one table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["digits", "cifar", "zoo", "cost"])
    parser.add_argument("--quick", action="store_true", help="smaller networks, less training, fewer rows")
    arguments = parser.parse_args()
    runs = {"digits": run_digits, "cifar": run_cifar, "zoo": run_zoo, "cost": run_cost}
    for part in arguments.parts:
        rows = runs[part](arguments.quick)
        if part == "cost":
            header = ["network", "forward, batch 32 at 224", "prediction / forward", "what_if / forward"]
            text = "After capture; medians and quartiles of three rounds."
        else:
            header, text = HEADER, TEXT
        name = "moments_" + part + ("_quick" if arguments.quick else "")
        write(name, f"Predicted against measured: {part}", f"{text}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
