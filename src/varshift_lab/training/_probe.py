"""A look at a network between two epochs, which changes nothing of it."""

from __future__ import annotations

from torch import nn

from varshift import VarshiftError
from varshift.data import RandomReshuffleSampler
from varshift.probe import Measurement, draw_batches
from varshift.probe import measure as measure_states
from varshift.theory import fold
from varshift_lab.data import Augmentation, EpochLoader, Images, subset
from varshift_lab.training._history import Probe


def states_of(
    network: nn.Module,
    images: Images,
    samples: int,
    batch_size: int,
    augmentation: Augmentation | None = None,
) -> Measurement:
    """The network in all its states on some of the images, in batches as it was trained on.

    Flags, statistics and random states are as before afterwards.
    """
    some = subset(images, min(samples, len(images)), balanced=False)
    loader = mixed_batches(some, batch_size, augmentation)
    return measure_states(network, draw_batches(loader, None, None))


def mixed_batches(images: Images, batch_size: int, augmentation: Augmentation | None = None) -> EpochLoader:
    """Batches as in training, in a random order that is always the same; all of them in every process.

    A last one that is less than half full is left out: norms would get poor statistics of it.
    """
    size = min(batch_size, len(images))
    order = RandomReshuffleSampler(len(images), seed=0)
    drop_last = len(images) % size < size / 2
    return EpochLoader(images, size, order=order, augmentation=augmentation, drop_last=drop_last)


def shifts_of(states: Measurement) -> list[float]:
    """``max(ratio, 1 / ratio)`` of every norm that the signal reaches, in the order of the modules.

    Raises:
        VarshiftError: If one has no finite value, as when all channels of a layer are dead.
    """
    found = []
    for layer in states.layers:
        if not layer.reached:
            continue
        if not layer.ratio:
            raise VarshiftError(
                f"the norm '{layer.name}' has no variance shift: the variance of its input in evaluation is "
                f"{layer.real_var} and its running variance {layer.moving_var}."
            )
        found.append(fold(layer.ratio))
    return found


def errors_of(states: Measurement) -> dict[str, float]:
    """Share of samples classified wrongly in each state, in %.

    Raises:
        VarshiftError: If they could not be counted.
    """
    if states.gap is None or states.gap.accuracy is None:
        raise VarshiftError("errors could not be counted: the outputs are not finite, or no class scores.")
    return {state: 100 * (1 - accuracy) for state, accuracy in states.gap.accuracy.items()}


def look(network: nn.Module, images: Images, samples: int, batch_size: int, epoch: int) -> Probe:
    """Probes a network after so many epochs."""
    states = states_of(network, images, samples, batch_size)
    errors = errors_of(states)
    return Probe(epoch, shifts_of(states), errors["train"], errors["eval"])
