"""How well conditioned the inputs of a network's weights are, which two of the papers are about."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from varshift.probe import preserved
from varshift_lab.data import EpochLoader, Images
from varshift_lab.studies import Measurements, Workbench
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
    for rows in _inputs(model, train):
        mean, alive = _alive(rows)
        if len(mean) < 2:
            continue
        variance = alive.var(0, correction=0)
        floored = variance + _RELATIVE_FLOOR * variance.max() + _FLOOR
        found["condition"].append(_condition(alive))
        found["condition_bias"].append(math.sqrt(_condition(_with_one(alive))))
        scaled = (alive - mean) / floored.sqrt()
        found["condition_preconditioned"].append(math.sqrt(_condition(_with_one(scaled))))
    if not found["condition"]:
        return {}
    means = {name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in found.items()}
    return {**means, **{f"{name}_layers": values for name, values in found.items()}}


def _inputs(model: nn.Module, images: Images) -> Iterator[Tensor]:
    """Inputs of the weights as rows of channels, in order, each freed before the next is looked at."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach().movedim(1, -1).flatten(0, -2))

    weights = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [module.register_forward_pre_hook(keep) for module in weights]
    size = min(_SAMPLES, len(images))
    loader = EpochLoader(images, size, drop_last=True)
    try:
        with preserved(model, seed=0), torch.no_grad():
            model.train()
            inputs, _ = next(iter(loader))
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for place in range(1, len(found)):
        rows, found[place] = found[place].double(), torch.empty(0)
        yield rows


def _alive(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The features that vary, and their means."""
    variance = rows.var(0, correction=0)
    kept = rows[:, variance > _DEAD * variance.max()]
    return kept.mean(0), kept


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat((rows.new_ones(len(rows), 1), rows), 1)


def _condition(rows: Tensor) -> float:
    """Largest over smallest eigenvalue of the second moments, as far as their precision goes."""
    values = torch.linalg.eigvalsh(rows.T @ rows / len(rows))
    return float(values[-1] / values[0].clamp(min=1e-12 * values[-1]))
