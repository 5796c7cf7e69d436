"""Lightning: accumulating gradients does not make the batches of a batch norm larger.

Run it with ``python examples/lightning_accumulation.py``. It needs ``lightning``. The fault is found during
and after the fit, cured, and gone in the next fit.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()  # only of use next to a torchvision that does not fit torch

import lightning.pytorch as lightning  # noqa: E402

from varshift.integrations import VarshiftCallback  # noqa: E402

TRAIN, TEST = 1, 2


class Classifier(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> None:
        inputs, targets = batch
        self.log("val_loss", F.cross_entropy(self(inputs), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def data(seed: int, batch_size: int, count: int = 512) -> DataLoader:
    """Points of four classes."""
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (count,), generator=generator)
    inputs = centres[targets] + torch.randn(count, 16, generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=seed == TRAIN)


def fit(net: nn.Module) -> vs.Report:
    """Trains a network; returns the report of a check at the end."""
    callback = VarshiftCallback(check_at_end=True, on_finding=print_finding)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=16,  # 64 samples for a step, and still 4 for a norm
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(net), data(TRAIN, batch_size=4), data(TEST, batch_size=64))
    print(f"validation loss {float(trainer.callback_metrics['val_loss']):.3f}")
    assert callback.report is not None
    return callback.report


def print_finding(finding: vs.Finding) -> None:
    """As a callback would warn."""
    print(f"{finding.code} {finding.severity}: {finding.message}")


def network() -> nn.Module:
    """Two hidden layers with batch norms."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (16, 64):
        layers += [nn.Linear(width, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 4))


def main() -> tuple[vs.Report, vs.Report]:
    """Trains, cures and trains again; returns both reports."""
    before = fit(network())

    # Both findings can be cured by norms that do not look at the batch, and by another training.
    cured = vs.fix(
        network(), before, loader=data(TRAIN, batch_size=4), cures={"swap-norm": {"to": "group_norm"}}
    )
    print(cured)

    after = fit(cured.model)
    print("clean" if after.ok else after)
    return before, after


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main()
