"""What is measured of a trained network: how good it is deployed, and how far from its training."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from torch import nn

from varshift._errors import DataError
from varshift.comparison._stream import Stream
from varshift.model import Forward, Reader, move, seed_all, seed_held, twin_of
from varshift.probe import Loss, batch_loss, correct
from varshift.trials import TrialError

GAP_BATCHES = 16
# Epochs whose numbers no training draws.
_GAP_EPOCH, _JUDGED_EPOCH = 900_001, 900_002


def measure_outcome(
    network: nn.Module,
    loader: Any,
    judged: Any,
    *,
    seed: int,
    device: torch.device | str,
    forward: Forward | None,
    loss: Loss | None,
) -> dict[str, float]:
    """Loss and accuracy of a trained network in ``eval()``, and the gap to its loss in ``train()``.

    The gap is ``loss in eval() - loss in train()`` on the same batches of the training data, with the weights
    as they are. The network is not used any more afterwards: passes in training mode write its statistics.

    Args:
        network: The trained network.
        loader: The training data.
        judged: The data that it is judged on.
        seed: Seed of the batches, the same for all variants.
        device: Where batches are put.
        forward: Function of model and batch that runs the model.
        loss: Function of outputs and targets.

    Returns:
        ``loss``, ``gap``, ``samples``, and ``accuracy`` where targets are class indices.

    Raises:
        TrialError: If a loss is not finite.
        DataError: If there are no targets.
    """
    stream = _epoch_of(judged, seed, _JUDGED_EPOCH)
    batches = [move(batch, device) for batch in islice(_epoch_of(loader, seed, _GAP_EPOCH), GAP_BATCHES)]
    if not batches:
        raise DataError("the loader yielded no batches: check that its data set is not empty.")
    reader = Reader(network, forward)
    reader.read_running(twin_of(network)[0], batches[0])

    def passed(several: Any) -> tuple[float, int, int, int]:
        total, samples, right, answers = 0.0, 0, 0, 0
        for batch in several:
            call = reader.read(move(batch, device))
            outputs = call.outputs(network, forward)
            value = batch_loss(outputs, call, loss)
            if value is None:
                raise DataError(
                    "the batches have no targets to judge by: pass batches with targets, or loss=."
                )
            if not math.isfinite(value):
                raise TrialError(f"the loss of the trained network is {value}: the training has diverged.")
            counted = correct(outputs, call.targets)
            total, samples = total + value * call.size, samples + call.size
            if counted is not None:
                right, answers = right + counted[0], answers + counted[1]
        if not samples:
            raise DataError("val_loader yielded no batches: check that its data set is not empty.")
        return total / samples, samples, right, answers

    with torch.no_grad():
        network.eval()
        deployed, samples, right, answers = passed(stream)
        in_eval = passed(batches)[0]
        network.train()
        seed_all(seed)
        seed_held(network, seed)
        in_train = passed(batches)[0]
    outcome: dict[str, float] = {"loss": deployed, "gap": in_eval - in_train, "samples": samples}
    if answers:
        outcome |= {"accuracy": right / answers, "samples": answers}
    return outcome


def _epoch_of(loader: Any, seed: int, epoch: int) -> Stream:
    stream = Stream(loader, seed)
    stream.epoch = epoch
    return stream
