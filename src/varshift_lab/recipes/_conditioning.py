"""How well conditioned the inputs of a network's weights are, which two of the papers are about."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from varshift.model import preserved
from varshift.trials import Measurements, Workbench
from varshift_lab.data import EpochLoader, Images
from varshift_lab.training import TrainingSettings, measure

# Training images that the inputs are taken from: positions make many rows of each.
_SAMPLES = 500
# Features with less than this share of the largest variance are dead and left out.
_DEAD = 1e-6
# The preconditioner's constants: floors of the variances, relative to the largest and absolute.
_RELATIVE_FLOOR, _FLOOR = 1e-2, 1e-4


@measure("conditioning")
def conditioning(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Condition numbers of the inputs of all convolutions and linear layers but the first, in train mode.

    ``condition``: of ``E[h h^T]``, the matrix of second moments between the channels, over samples and
    positions. ``condition_bias``: of the rows ``[1, h]`` that weight and bias see together, and
    ``condition_preconditioned``: of these rows when `h` is centred and divided by its deviation, floored, as
    batch norm preconditioning does; both are ratios of singular values, roots of those of the second moments.
    Geometric means over the layers; with ``_layers`` at the end lists over them in the order of execution.
    """
    found: dict[str, list[float]] = {"condition": [], "condition_bias": [], "condition_preconditioned": []}
    for moments in _moments(model, train)[1:]:
        mean = moments[0, 1:]
        variance = moments.diagonal()[1:] - mean.square()
        alive = variance > _DEAD * variance.max()
        if int(alive.sum()) < 2:
            continue
        kept = torch.cat((alive.new_ones(1), alive))
        moments, mean, variance = moments[kept][:, kept], mean[alive], variance[alive]
        floored = variance + _RELATIVE_FLOOR * variance.max() + _FLOOR
        # Rows [1, h] times this are [1, (h - mean) / deviation].
        change = torch.diag(torch.cat((floored.new_ones(1), floored.rsqrt())))
        change[0, 1:] = -mean * floored.rsqrt()
        found["condition"].append(_condition(moments[1:, 1:]))
        found["condition_bias"].append(math.sqrt(_condition(moments)))
        found["condition_preconditioned"].append(math.sqrt(_condition(change.T @ moments @ change)))
    if not found["condition"]:
        return {}
    means = {name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in found.items()}
    return {**means, **{f"{name}_layers": values for name, values in found.items()}}


def _moments(model: nn.Module, images: Images) -> list[Tensor]:
    """Second moments of the rows ``[1, h]`` in front of each weight, in the order of execution."""
    found: list[Tensor] = []

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().movedim(1, -1).flatten(0, -2).double()
        rows = torch.cat((rows.new_ones(len(rows), 1), rows), 1)
        found.append(rows.T @ rows / len(rows))

    weights = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    loader = EpochLoader(images, min(_SAMPLES, len(images)), drop_last=True)
    with preserved(model, seed=0), torch.no_grad():  # which takes the hooks away, too
        for module in weights:
            module.register_forward_pre_hook(add)
        model.train()
        inputs, _ = next(iter(loader))
        model(inputs)
    return found


def _condition(moments: Tensor) -> float:
    """Largest over smallest eigenvalue, as far as their precision goes."""
    values = torch.linalg.eigvalsh(moments)
    return float(values[-1] / values[0].clamp(min=1e-12 * values[-1]))
