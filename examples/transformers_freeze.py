"""transformers: a freeze that the Trainer undoes is found while it trains, cured, and gone in the next run.

Run it with ``python examples/transformers_freeze.py``. It needs ``transformers`` and ``accelerate``.
"""

from __future__ import annotations

import copy
import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()  # only of use next to a torchvision that does not fit torch

from transformers import (  # noqa: E402
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from varshift.integrations import VarshiftTrainerCallback  # noqa: E402


class Images(Dataset):
    """Images of two classes that differ in their brightness on the left."""

    def __init__(self, count: int = 128) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(2, (count,), generator=generator)
        self.images = torch.randn(count, 3, 16, 16, generator=generator)
        self.images[..., :8] += 2.0 * self.labels[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[number], "labels": self.labels[number]}


def frozen_model() -> ResNetForImageClassification:
    """A small residual network whose backbone is frozen as tutorials do it, to fit a new head."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2)
    )
    model.resnet.requires_grad_(False)
    for module in model.resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the Trainer calls model.train() before every batch
    return model


def train(model: nn.Module) -> vs.Report:
    """Trains a model by the Trainer; returns what the watch saw."""
    callback = VarshiftTrainerCallback(on_finding=print_finding)
    backbone = copy.deepcopy(model.resnet.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        Trainer(model, arguments, train_dataset=Images(), callbacks=[callback]).train()
    same = all(torch.equal(value, backbone[name]) for name, value in model.resnet.state_dict().items())
    print("the backbone is as it was" if same else "the backbone has other statistics than before")
    assert callback.report is not None
    return callback.report


def print_finding(finding: vs.Finding) -> None:
    """As a callback would warn."""
    print(f"{finding.code} {finding.severity}: {finding.message}")


def main() -> tuple[vs.Report, vs.Report]:
    """Trains, cures and trains again; returns both reports."""
    model = frozen_model()
    before = train(model)

    # From the model as it was: statistics that have moved do not come back.
    cured = vs.fix(frozen_model(), before, shape=(3, 16, 16), unsafe=True)
    print(cured)
    after = train(cured.model)
    print("clean" if after.ok else after)
    return before, after


if __name__ == "__main__":
    main()
