"""The networks and batches that are timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varshift.integrations import declare_torchvision_operators


@dataclass(frozen=True)
class Case:
    """A network with its batches."""

    name: str
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]


def _data(count: int, size: int, shape: tuple[int, ...], classes: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, *shape), torch.randint(classes, (size,))) for _ in range(count)]


def cases(batches: int = 4) -> list[Case]:
    """A small network of the papers and three of the zoo, all with random weights."""
    declare_torchvision_operators()
    import timm
    import torchvision

    from varshift_lab.networks import preresnet

    torch.manual_seed(0)
    return [
        Case(
            "PreResNet-20, dropout (a) .3, 3x32x32, batch 128",
            preresnet(depth=20, num_classes=10, dropout=0.3, placement="a", in_channels=3),
            _data(batches, 128, (3, 32, 32), 10),
        ),
        Case(
            "torchvision ResNet-18, 3x128x128, batch 32",
            torchvision.models.resnet18(),
            _data(batches, 32, (3, 128, 128), 1000),
        ),
        Case(
            "timm DenseNet-121, dropout .2, 3x64x64, batch 32",
            timm.create_model("densenet121", proj_drop_rate=0.2),
            _data(batches, 32, (3, 64, 64), 1000),
        ),
        Case(
            "timm EfficientNet-B0, drop path .2, 3x96x96, batch 32",
            timm.create_model("efficientnet_b0", drop_path_rate=0.2),
            _data(batches, 32, (3, 96, 96), 1000),
        ),
    ]
