"""Contests of the optimiser parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _contest import StepContest
from varshift.integrations import declare_torchvision_operators
from varshift.optim import (
    AdaptiveGradientClipping,
    BatchNormPreconditioner,
    WeightRescaling,
    find_followed_by_norm,
)

Step = Callable[[], object]


def _resnet50(device: str) -> nn.Module:
    declare_torchvision_operators()
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet50().to(device)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9, nesterov=True, weight_decay=1e-4)


def _finished(device: str, step: Step) -> Step:
    def run() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _bare_step(
    attach: Callable[[nn.Module, torch.optim.Optimizer], object], steps: int = 1
) -> Callable[[str], Step]:
    """The optimiser's step alone, over the parameters of a ResNet-50 with gradients that lie ready."""

    def make(device: str) -> Step:
        model = _resnet50(device)
        for parameter in model.parameters():
            parameter.grad = 1e-4 * torch.randn_like(parameter)
        optimizer = _sgd(model)
        attach(model, optimizer)

        def step() -> None:
            for _ in range(steps):
                optimizer.step()

        return _finished(device, step)

    return make


def _training_step(
    network: Callable[[str], nn.Module],
    shape: tuple[int, ...],
    attach: Callable[[nn.Module, torch.optim.Optimizer], object],
) -> Callable[[str], Step]:
    """Forward, backward and the optimiser's step."""

    def make(device: str) -> Step:
        model = network(device)
        optimizer = _sgd(model)
        attach(model, optimizer)
        x = torch.randn(shape, device=device)
        y = torch.randint(10, shape[:1], device=device)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return _finished(device, step)

    return make


def _nothing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    pass


def _clip(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    AdaptiveGradientClipping(model).attach(optimizer)


def _clip_all(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """With caps that fall from step to step, so that every gradient is clipped every time."""
    clipping = AdaptiveGradientClipping(model, 1e-6, eps=1e-9)
    clipping.attach(optimizer)

    def tighten(*_: object) -> None:
        clipping.clip_factor *= 0.99

    optimizer.register_step_pre_hook(tighten)


def _rescale(interval: int) -> Callable[[nn.Module, torch.optim.Optimizer], None]:
    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        weights = find_followed_by_norm(model, order="registered")
        rescaling = WeightRescaling(weights, interval=interval)
        rescaling.rescale_()
        rescaling.attach(optimizer)

    return attach


def _precondition(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    BatchNormPreconditioner(model).attach(optimizer)


class _Block(nn.Module):
    """Two convolutions with a bias, each followed by a group norm, around an identity or a projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)])
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.norms[1](self.two(hidden)) + self.skip(x))


def _group_norm_resnet(width: int, blocks: int, classes: int = 10) -> Callable[[str], nn.Module]:
    """A residual network for small images with group norms, as batch norm preconditioning is used with."""

    def make(device: str) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1), nn.GroupNorm(8, width), nn.ReLU()]
        inputs = width
        for stage in range(3):
            for block in range(blocks):
                outputs = width << stage
                layers.append(_Block(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        return nn.Sequential(*layers).to(device)

    return make


_IMAGES = (8, 3, 96, 96)
_SMALL = _group_norm_resnet(16, 3)
_WIDE = _group_norm_resnet(64, 2)

STEPS: list[StepContest] = [
    StepContest(
        "AdaptiveGradientClipping, ResNet-50, optimiser's step alone, nothing clipped",
        "SGD, momentum .9, weight decay",
        _bare_step(_clip),
        _bare_step(_nothing),
        1.10,
    ),
    StepContest(
        "AdaptiveGradientClipping, ResNet-50, optimiser's step alone, all clipped",
        "SGD, momentum .9, weight decay",
        _bare_step(_clip_all),
        _bare_step(_nothing),
        1.10,
    ),
    StepContest(
        "AdaptiveGradientClipping, ResNet-50, training step, 8x3x96x96",
        "the same without",
        _training_step(_resnet50, _IMAGES, _clip),
        _training_step(_resnet50, _IMAGES, _nothing),
        1.10,
    ),
    StepContest(
        "WeightRescaling, ResNet-50, optimiser's step alone",
        "SGD, momentum .9, weight decay",
        _bare_step(_rescale(1)),
        _bare_step(_nothing),
        1.10,
    ),
    StepContest(
        "WeightRescaling with interval=10, ResNet-50, 10 steps of the optimiser alone",
        "SGD, momentum .9, weight decay",
        _bare_step(_rescale(10), 10),
        _bare_step(_nothing, 10),
        1.10,
    ),
    StepContest(
        "WeightRescaling, ResNet-50, training step, 8x3x96x96",
        "the same without",
        _training_step(_resnet50, _IMAGES, _rescale(1)),
        _training_step(_resnet50, _IMAGES, _nothing),
        1.10,
    ),
    StepContest(
        "BatchNormPreconditioner, ResNet-20 with group norms, training step, 128x3x32x32",
        "the same without",
        _training_step(_SMALL, (128, 3, 32, 32), _precondition),
        _training_step(_SMALL, (128, 3, 32, 32), _nothing),
        1.15,
    ),
    StepContest(
        "BatchNormPreconditioner, ResNet-14, 4 times as wide, training step, 64x3x32x32",
        "the same without",
        _training_step(_WIDE, (64, 3, 32, 32), _precondition),
        _training_step(_WIDE, (64, 3, 32, 32), _nothing),
        1.15,
    ),
]
