"""What varshift's own checker sees of the noise layers, by export and by recording a pass."""

import pytest
import torch
from exported_flows import captured_by
from torch import nn

import varshift
from varshift.nn import Dropout, GaussianDropout, IndependentComponent2d, UniformDropout


class Net(nn.Module):
    """Noise straight in front of a norm: the placement of rule VS101."""

    def __init__(self, noise):
        super().__init__()
        self.stem, self.noise, self.norm = nn.Conv2d(3, 8, 3), noise, nn.BatchNorm2d(8)
        self.body, self.last, self.head = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.noise(self.stem(x))).relu()
        return self.head(self.last(self.body(x)).relu().mean((2, 3)))


CASES = [
    (lambda: Dropout(0.4), "noise", "dropout", 0.4),
    (lambda: Dropout(0.001), "noise", "dropout", 0.001),
    (lambda: UniformDropout(0.5), "noise", "uniform", 0.5),
    (lambda: UniformDropout(0.9, per_channel=True), "noise", "uniform", 0.9),
    (lambda: GaussianDropout(0.7), "noise", "gaussian", 0.7),
    (lambda: IndependentComponent2d(8, drop_prob=0.3), "noise.noise", "dropout", 0.3),
]
IDS = ["dropout", "rare", "uniform", "per_channel", "gaussian", "component"]


@pytest.mark.parametrize("method", ["exported", "recorded"])
@pytest.mark.parametrize(("make", "where", "kind", "rate"), CASES, ids=IDS)
def test_a_capture_names_kind_and_rate(make, where, kind, rate, method):
    found = captured_by(method, Net(make()), torch.randn(4, 3, 10, 10))
    (site,) = found.train.noises
    assert (site.name, site.kind, site.path, site.nearest) == (where, kind, "direct", "norm")
    assert site.rate == pytest.approx(rate, rel=1e-5)
    assert not site.additive
    assert not found.eval.noises


STRONG = {"dropout": CASES[0], "per_channel": CASES[3], "gaussian": CASES[4], "component": CASES[5]}


@pytest.mark.parametrize(("make", "where"), [case[:2] for case in STRONG.values()], ids=list(STRONG))
def test_the_check_finds_strong_noise_before_a_norm(make, where):
    torch.manual_seed(0)
    model = Net(make())
    loader = [(torch.randn(32, 3, 10, 10), torch.randint(3, (32,))) for _ in range(4)]
    with torch.no_grad():
        for x, _ in loader * 10:
            model(x)
    report = varshift.check(model, loader)
    assert ("VS101", where) in {(finding.code, finding.where) for finding in report.findings}
    assert "VS106" not in {finding.code for finding in report.findings}
