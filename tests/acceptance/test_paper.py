"""The paper's acceptance tests: Li et al. 2018, and the vectors checked by simulation."""

import functools

import pytest
import torch
from torch import nn

import varshift as vs
from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import digits, tensor_loader
from varshift_lab.networks import preresnet


@functools.cache
def trained(dropout):
    torch.manual_seed(0)
    placement = "a" if dropout else "none"
    net = preresnet(20, 10, dropout=dropout, placement=placement, in_channels=1, width=8)
    data = digits()
    loader = tensor_loader(data.train_images, data.train_labels, 64, shuffle=True, drop_last=True)
    train(net, loader, TrainingSettings(epochs=6, learning_rate=0.1))
    return net, loader


@pytest.mark.parametrize("estimator", ["pooled", "ema"])
@pytest.mark.parametrize("dropout", [0.3, 0.5, 0.7])
def test_first_norm_after_dropout_a(dropout, estimator):
    net, loader = trained(dropout)
    report = vs.check(net, loader, max_batches=21, estimator=estimator)
    first = report.layer(report.noises[0].nearest)
    keep = 1 - dropout
    assert report.noises[0].path == "direct"
    assert first.shift >= 0.85 / keep
    assert first.ratio < 1
    # Nothing upstream has shifted, so recalibration alone leaves this norm at 1.
    assert first.control_ratio == pytest.approx(1, abs=0.02)
    (finding,) = report.findings_by_code["VS101"]
    assert report.noises[0].id in {site.id for site in finding.sites}


def test_network_without_dropout_reads_one():
    net, loader = trained(0.0)
    report = vs.check(net, loader, max_batches=21)
    assert max(layer.shift for layer in report.layers) < 1.02
    assert not report.findings


class Uout(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def forward(self, x):
        return x * (1 + self.beta * (2 * torch.rand_like(x) - 1)) if self.training else x


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=generator) / 24**0.5
    return torch.randn(40, 512, 24, generator=generator) @ mix.T + 0.15 * torch.randn(24, generator=generator)


@pytest.mark.parametrize(
    ("noise", "noise_variance", "linear", "relu"),
    [
        (nn.Dropout(0.5), 1.0, False, False),
        (nn.Dropout(0.7), 7 / 3, False, False),
        (nn.Dropout(0.5), 1.0, True, False),
        (Uout(0.5), 0.25 / 3, False, False),
        (nn.Dropout(0.5), 1.0, True, True),
    ],
    ids=["a .5", "a .7", "b .5", "a Uout .5", "b relu .5"],
)
def test_end_to_end_vectors(inputs, noise, noise_variance, linear, relu):
    """Section 12: the measured shift against the prediction from weights and second moments, within 3 %."""
    torch.manual_seed(0)
    data = inputs.relu() if relu else inputs
    weight = nn.Linear(24, 16) if linear else None
    model = nn.Sequential(noise, *([weight] if weight else []), nn.BatchNorm1d(16 if linear else 24))
    batches = list(data)
    vs.recalibrate(model, batches, noise=True)
    norm = str(len(model) - 1)
    measured = vs.check(model, batches, max_batches=len(batches)).layer(norm)

    flat = data.reshape(-1, 24).double()
    second = flat.square().mean(0)
    matrix = weight.weight.detach().double() if weight else torch.eye(24, dtype=torch.float64)
    clean = (flat @ matrix.T).var(0)
    predicted = clean.mean() / (clean + noise_variance * matrix.square() @ second).mean()
    assert measured.ratio == pytest.approx(float(predicted), rel=0.03)
    assert measured.local_ratio == pytest.approx(float(predicted), rel=0.03)
