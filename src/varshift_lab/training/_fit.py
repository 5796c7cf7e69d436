"""The training loop."""

from __future__ import annotations

import torch
from torch import nn

from varshift_lab.data import Images
from varshift_lab.studies import Workbench
from varshift_lab.training._history import History
from varshift_lab.training._run import Run
from varshift_lab.training._settings import TrainingSettings
from varshift_lab.training._treatment import Treatment


def fit(
    network: nn.Module,
    images: Images,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    treatment: Treatment | None = None,
    workbench: Workbench | None = None,
) -> History:
    """Trains a classifier in place, from its checkpoint if there is one, and leaves it in training mode.

    The inner loop never waits for the device: losses and hits stay there until the epoch is over.

    Args:
        network: The network, class scores out.
        images: The training set.
        settings: How.
        seed: Seed of order, augmentation and masks.
        treatment: What a paper adds.
        workbench: Device, precision, folder of the checkpoints and the like.

    Returns:
        What happened, epoch by epoch, those before an interruption included.

    Raises:
        TrialError: If training diverged, or a checkpoint cannot be written or is of another run.
        ValueError: If the settings do not fit the images or the number of processes.
        ImportError: If lightning-fabric is not installed.
    """
    bench = workbench or Workbench()
    with torch.random.fork_rng(devices=_generators(bench)):
        run = Run(network, images, settings, seed, treatment or Treatment(), bench)
        for epoch in range(run.history.epochs, settings.epochs):
            losses, hits = [], []
            for inputs, labels, ids in run.batches(epoch):
                outputs = run.model(inputs)
                loss = run.loss(outputs, labels, ids)
                run.fabric.backward(loss)
                if settings.clip_norm is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                run.optimizer.step()
                run.optimizer.zero_grad()
                losses.append(loss.detach())
                hits.append((outputs.detach().argmax(1) == labels).sum())
            run.end_epoch(epoch, losses, hits)
    return run.history


def _generators(bench: Workbench) -> list[torch.device]:
    device = torch.device(bench.device)
    return [device] if device.type == "cuda" else []
