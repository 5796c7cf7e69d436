"""VS301 runs the batch of one: what it raises or breaks is an error, whatever the shapes say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


class HandWritten(nn.Module):
    """Divides by the unbiased variance of the batch: 0 / 0 for one sample."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


class Careful(nn.BatchNorm1d):
    """Looks after batches of one itself."""

    def forward(self, x):
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return super().forward(x)


def vectors(norm):
    return nn.Sequential(nn.Flatten(), nn.Linear(27, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))


def maps():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)
    )


def network(make):
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for _ in range(40):
            net(torch.randn(16, 3, 3, 3))
    return net


def loader(samples):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, 3, 3, 3, generator=draw), torch.randint(2, (samples,), generator=draw)
    return DataLoader(TensorDataset(x, y), 16, shuffle=True)


@pytest.mark.parametrize(
    ("make", "severity", "words"),
    [
        (lambda: vectors(nn.BatchNorm1d), "error", "Expected more than 1 value per channel"),
        (lambda: vectors(HandWritten), "error", "no longer finite"),
        (lambda: vectors(Careful), "warning", "from a single sample"),
        (maps, "warning", "from a single sample"),
    ],
    ids=["torch's", "by hand", "careful", "maps"],
)
@pytest.mark.filterwarnings("ignore:var\\(\\)")
def test_a_batch_of_one_is_run(make, severity, words):
    net = network(make)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    (finding,) = vs.check(net, loader(65), select=["VS301"]).findings
    assert finding.severity == severity
    assert words in finding.message
    assert finding.evidence["finite"] == (severity == "warning")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert vs.check(net, loader(64), select=["VS301"]).findings == ()
