"""Layer drop is no fault: a healthy encoder that skips layers by chance is clean."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


class Encoder(nn.Module):
    """Convolutions with batch norm, then layers that training skips by chance."""

    def __init__(self, rate: float, drawn_by: str, *, in_evaluation: bool = False) -> None:
        super().__init__()
        self.rate, self.drawn_by, self.in_evaluation = rate, drawn_by, in_evaluation
        self.features = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1), nn.BatchNorm1d(16), nn.GELU())
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).transpose(1, 2)
        for layer in self.layers:
            drawn = torch.rand([]) if self.drawn_by == "torch" else random.random()
            if not ((self.training or self.in_evaluation) and drawn < self.rate):
                x = layer(x)
        return self.head(x.mean(1))


def _loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (256,), generator=generator)
    inputs = torch.randn(4, 3, 12, generator=generator)[targets]
    inputs = inputs + 1.5 * torch.randn(inputs.shape, generator=generator)
    return DataLoader(TensorDataset(inputs, targets), 32, shuffle=True, drop_last=True, generator=generator)


def _trained(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(8):
        for inputs, targets in _loader():
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("drawn_by", ["torch", "python"])
def test_a_healthy_encoder_with_layer_drop_is_clean(drawn_by: str) -> None:
    torch.manual_seed(0)
    random.seed(0)
    report = vs.check(_trained(Encoder(0.2, drawn_by)), _loader())
    assert [finding.code for finding in report.findings] == []


def test_layers_that_evaluation_skips_by_chance_are_found() -> None:
    torch.manual_seed(0)
    report = vs.check(_trained(Encoder(0.5, "torch", in_evaluation=True)), _loader())
    assert "VS106" in {finding.code for finding in report.findings}
