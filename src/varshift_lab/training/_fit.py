"""The training loop."""

from __future__ import annotations

from torch import nn

from varshift.trials import Workbench
from varshift_lab.data import Images
from varshift_lab.training._history import History
from varshift_lab.training._random import own_random_state
from varshift_lab.training._run import Run
from varshift_lab.training._settings import TrainingSettings
from varshift_lab.training._tally import Tally
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

    The inner loop never waits for the device: losses and hits stay there until the epoch is over. The global
    random state is as before afterwards.

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
        TrialError: If training diverged, a checkpoint cannot be written or is of another run, or there is no
            such device.
        ValueError: If the settings do not fit the images or the number of processes.
        ImportError: If lightning-fabric is not installed.
    """
    workbench = workbench or Workbench()
    with own_random_state(workbench.device):
        run = Run(network, images, settings, seed, treatment or Treatment(), workbench)
        for epoch in range(run.history.epochs, settings.epochs):
            tally = Tally()
            for inputs, labels, ids in run.batches(epoch):
                outputs = run.model(inputs)
                loss = run.loss(outputs, labels, ids)
                run.fabric.backward(loss)
                if settings.clip_norm is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                run.optimizer.step()
                run.optimizer.zero_grad()
                tally.add(loss, outputs, labels)
            run.end_epoch(epoch, tally)
    return run.history
