"""The measures that trials usually ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

import varshift
from varshift.trials import Measurements, Workbench
from varshift_lab.data import Augmentation, EpochLoader, Images
from varshift_lab.training._evaluate import evaluate
from varshift_lab.training._measures import measure
from varshift_lab.training._probe import mixed_batches, shifts_of, states_of
from varshift_lab.training._settings import TrainingSettings

# Samples at a time in evaluation, where their number changes nothing but the speed.
_BATCH = {"cpu": 250, "other": 2000}
# Training images that variances are measured on: enough for a standard error of a few per mille.
_SHIFT_SAMPLES = 2048
# Below this a ratio differs from 1 by rounding alone.
_ROUNDING = 1e-5


def _stored(images: Images) -> EpochLoader:
    size = _BATCH["cpu" if images.pixels.device.type == "cpu" else "other"]
    return EpochLoader(images, size, order="stored")


def _tested(network: nn.Module, train: Images, test: Images, prefix: str = "") -> Measurements:
    tested, seen = evaluate(network, _stored(test)), evaluate(network, _stored(train))
    return {
        f"{prefix}test_error": tested.error,
        f"{prefix}test_loss": tested.loss,
        f"{prefix}train_error_eval": seen.error,
        f"{prefix}train_loss_eval": seen.loss,
    }


@measure("errors")
def errors(
    network: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Errors in % and losses on the test images, and on the training images in both modes, not augmented."""
    mixed = evaluate(network, mixed_batches(train, settings.batch_size), train_mode=True)
    return {
        **_tested(network, train, test),
        "train_error_train_mode": mixed.error,
        "train_loss_train_mode": mixed.loss,
    }


@contextmanager
def _recalibrated(network: nn.Module, train: Images, settings: TrainingSettings) -> Iterator[None]:
    handle = varshift.recalibrate(network, mixed_batches(train, settings.batch_size))
    try:
        yield
    finally:
        handle.undo()


@measure("adjusted")
def adjusted(
    network: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Errors and losses with the statistics that `varshift.recalibrate` finds on the training images."""
    with _recalibrated(network, train, settings):
        return _tested(network, train, test, "adjusted_")


@measure("shift")
def shift(
    network: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """The variance shift of every norm that the signal reaches, in the order of the modules, not augmented.

    ``ratio`` and ``local_ratio`` as the probe defines them, ``shift`` the larger of the ratio and its
    inverse, ``shift_mean`` over all norms, and ``shift_first`` at the first norm behind noise: the first
    whose input has another variance without the noise. Networks without norms have none of these, networks
    without noise no ``shift_first``.
    """
    return shift_of(network, train, settings.batch_size)


def shift_of(
    network: nn.Module, images: Images, batch_size: int, augmentation: Augmentation | None = None
) -> Measurements:
    """The figures of `shift`, on images that may be augmented as in training."""
    states = states_of(network, images, _SHIFT_SAMPLES, batch_size, augmentation)
    shifts = shifts_of(states)
    if not shifts:
        return {}
    layers = [layer for layer in states.layers if layer.reached]
    local = [1.0 if layer.local_ratio is None else layer.local_ratio for layer in layers]
    first = [place for place, ratio in enumerate(local) if abs(ratio - 1) > _ROUNDING]
    return {
        "shift": shifts,
        "ratio": [layer.ratio or 0.0 for layer in layers],
        "local_ratio": local,
        "shift_mean": sum(shifts) / len(shifts),
        **({"shift_first": shifts[first[0]]} if first else {}),
    }


@measure("geometry")
def geometry(
    network: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Angles between the filters of all convolutions and the vector of ones, means over filters.

    ``cos2`` and ``d_cos2`` (times the number of weights of a filter) are means over convolutions; with
    ``_layers`` at the end they are lists over them, in the order of the modules, and ``width_layers`` is d.
    """
    squares: list[float] = []
    widths: list[float] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            filters = module.weight.detach().flatten(1).double().cpu()
            alive = filters[filters.abs().sum(1) > 0]
            if len(alive):
                # `varshift.theory.cosine_squared`, of all filters at once
                cosines = alive.sum(1).square() / (alive.shape[1] * alive.square().sum(1))
                squares.append(float(cosines.mean()))
                widths.append(float(alive.shape[1]))
    if not squares:
        return {}
    products = [square * width for square, width in zip(squares, widths, strict=True)]
    return {
        "cos2": sum(squares) / len(squares),
        "d_cos2": sum(products) / len(products),
        "cos2_layers": squares,
        "d_cos2_layers": products,
        "width_layers": widths,
    }
