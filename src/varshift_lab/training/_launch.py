"""Fabric for a workbench: one process, or one of those that torchrun started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from varshift.trials import TrialError, Workbench

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_fabric(workbench: Workbench) -> Fabric:
    """A launched Fabric.

    Under torchrun, on any number of nodes, this process is one of a data-parallel run and takes the device of
    its local rank, of the workbench's kind. Buffers are not broadcast in every step: the statistics of batch
    norms are those of each process, as always with data parallelism, and are averaged after each epoch.

    Raises:
        ImportError: If lightning-fabric is not installed (extra ``lab``).
        TrialError: If there is no such device.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise ImportError('training needs lightning-fabric: pip install "varshift[lab]".') from error
    device = torch.device(workbench.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrialError(f"device={workbench.device!r} is not there: torch finds no GPU. Use device='cpu'.")
    if torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = Fabric(
            accelerator=device.type,
            devices=local,
            num_nodes=int(os.environ["WORLD_SIZE"]) // local,
            strategy=DDPStrategy(broadcast_buffers=False),
            precision=workbench.precision,  # type: ignore[arg-type]
        )
    else:
        fabric = Fabric(
            accelerator=device.type,
            devices=1 if device.type == "cpu" else [device.index or 0],
            precision=workbench.precision,  # type: ignore[arg-type]
            # Otherwise a run inside a job of SLURM would be taken for one of its tasks.
            plugins=[LightningEnvironment()],
        )
    fabric.launch()
    return fabric
