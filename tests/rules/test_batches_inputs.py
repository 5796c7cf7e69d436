"""VS306 and VS307: inputs that are prepared otherwise, on networks that learned theirs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


def loader(x, y):
    return DataLoader(TensorDataset(x, y), 32, shuffle=True, drop_last=True)


def pictures(count=512, channels=3, seed=0):
    """Pictures of values between 0 and 1, brighter in the first channel."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count,), generator=draw)
    prototypes = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(9))
    x = (0.5 * prototypes[y] + 0.5 * torch.rand(count, channels, 8, 8, generator=draw)) ** 1.5
    return x * torch.linspace(1, 0.6, channels).view(1, -1, 1, 1), y


def table(count=512, seed=0):
    """Columns of very different scales."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=draw)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(9))[y] + torch.randn(
        count, 12, generator=draw
    )
    return x * torch.logspace(-2, 2, 12) + torch.linspace(-5, 40, 12), y


def standard(x):
    axes = (0, 2, 3) if x.dim() == 4 else (0,)
    deviation, mean = torch.std_mean(x, axes, keepdim=True)
    return (x - mean) / deviation


def convnet(channels=3):
    def layer(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    return nn.Sequential(layer(channels, 12), nn.MaxPool2d(2), layer(12, 16), layer(16, 16), *head)


def perceptron(inputs=12, outputs=3):
    layers = [
        nn.Linear(inputs, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
    ]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, outputs))


def trained(net, x, y, epochs=6):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    net.train()
    for _ in range(epochs):
        for inputs, targets in loader(x, y):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
    return net


def learned(make, x, y):
    torch.manual_seed(0)
    return trained(make(), x, y)


def loud(report):
    return [finding.code for finding in report.findings if finding.severity != "advice"]


CASES = {
    "pictures of 0 to 1": (convnet, lambda: pictures(), lambda x: x),
    "pictures of 0 to 255": (convnet, lambda: pictures(), lambda x: x * 255),
    "another convention": (convnet, lambda: pictures(), lambda x: 2 * x - 1),
    "columns as they are": (perceptron, lambda: table(), lambda x: x),
    "pixels in a row": (lambda: perceptron(64, 4), lambda: pictures(channels=1), lambda x: x * 16),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loader_without_the_standardisation_of_training(name):
    make, data, prepared = CASES[name]
    x, y = data()
    net = learned(make, standard(x), y)
    assert "VS306" not in loud(vs.check(net, loader(standard(x), y)))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = vs.check(net, loader(prepared(x), y))
    finding = report.findings[0]
    assert (finding.code, finding.severity) == ("VS306", "error")
    assert not {"VS201", "VS202", "VS207", "VS210"} & {one.code for one in report.findings}
    assert "Do not recalibrate" in finding.message
    assert [one.code for one in finding.cures] == ["match-inputs"]
    assert finding.evidence["loss_mapped"] < 0.5 * finding.evidence["loss_eval"]
    assert max(map(abs, finding.evidence["fitting_mean"])) < (0.1 if "pixels" not in name else 1.5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    if name not in ("pictures of 0 to 255", "columns as they are"):
        return
    # What the message warns of: statistics of these data are not those that the network is deployed with.
    vs.recalibrate(net, loader(prepared(x), y))
    with torch.no_grad():
        assert F.cross_entropy(net.eval()(standard(x)), y) > 2 * finding.evidence["loss_mapped"]


@pytest.mark.parametrize("moved_by", ["raw pictures", "other pictures", "other raw pictures"])
def test_statistics_that_other_data_moved_are_stale_and_no_matter_of_these_inputs(moved_by):
    x, y = pictures()
    net = learned(convnet, standard(x), y)
    other = torch.rand(512, 3, 8, 8, generator=torch.Generator().manual_seed(4)).round()
    others = {"raw pictures": x, "other pictures": 2 * standard(other) + 1, "other raw pictures": other}[
        moved_by
    ]
    with torch.no_grad():
        for part in others.split(32):
            net.train()(part)
    report = vs.check(net, loader(standard(x), y))
    assert "VS306" not in {one.code for one in report.findings}
    assert "VS202" in {one.code for one in report.findings}


@pytest.mark.parametrize("make", [convnet, lambda: perceptron(192, 4)], ids=["convnet", "perceptron"])
def test_statistics_of_an_earlier_epoch_are_no_matter_of_the_inputs(make):
    x, y = pictures()
    net = learned(make, x, y)  # raw inputs, and sound
    assert "VS306" not in loud(vs.check(net, loader(x, y)))
    early = {name: buffer.clone() for name, buffer in net.named_buffers()}
    trained(net, x, y, 12)
    net.load_state_dict(early, strict=False)
    assert "VS306" not in loud(vs.check(net, loader(x, y)))


@pytest.mark.parametrize("factor", [2.0, 0.4])
@pytest.mark.parametrize("prepared", [standard, lambda x: x], ids=["standardised", "raw"])
def test_a_scaled_first_layer_is_no_matter_of_the_inputs_either(prepared, factor):
    x, y = pictures()
    x = prepared(x)
    net = learned(convnet, x, y)
    with torch.no_grad():
        net[0][0].weight.mul_(factor)  # exactly what inputs of another scale would do
    report = vs.check(net, loader(x, y))
    assert "VS306" not in {one.code for one in report.findings}
    assert "VS202" in {one.code for one in report.findings}


def test_without_targets_the_norms_alone_tell():
    x, y = pictures()
    net = learned(convnet, standard(x), y)
    report = vs.check(net, list(x.split(32)))
    (finding,) = [one for one in report.findings if one.code == "VS306"]
    assert "loss_eval" not in finding.evidence
    assert finding.severity == "error"


@pytest.mark.parametrize("kind", ["scale", "columns", "order", "size"])
def test_a_deployment_loader_that_prepares_data_otherwise(kind):
    x, y = table() if kind == "columns" else pictures()
    u, v = table(seed=1) if kind == "columns" else pictures(seed=1)
    net = learned(perceptron if kind == "columns" else convnet, standard(x), y)
    deployed = {
        "scale": lambda: u,
        "columns": lambda: u,
        "order": lambda: standard(u).flip(1),
        "size": lambda: F.interpolate(standard(u), scale_factor=3, mode="bilinear"),
    }[kind]()
    report = vs.check(net, loader(standard(x), y), deploy=loader(deployed, v))
    finding = report.findings[0]
    assert (finding.code, finding.step) == ("VS307", "transform")
    assert finding.severity == "error"
    if kind == "order":
        assert "reverse order" in finding.message
        assert finding.evidence["loss_reversed"] < finding.evidence["loss_deployed"]
    elif kind != "size":
        assert finding.evidence["loss_matched"] < 0.5 * finding.evidence["loss_deployed"]
    assert report.verdict.code == "VS307"


@pytest.mark.parametrize("make", [convnet, perceptron], ids=["convnet", "perceptron"])
def test_loaders_that_agree_are_silent_even_where_new_samples_are_harder(make):
    (x, y), (u, v) = (
        (table(96), table(256, seed=1)) if make is perceptron else (pictures(96), pictures(256, seed=1))
    )
    # Labels of chance are learned by heart: the loss on new samples is many times that of training.
    y = torch.randint(3, y.shape, generator=torch.Generator().manual_seed(2))
    net = trained(learned(make, standard(x), y), standard(x), y, 40)
    report = vs.check(net, loader(standard(x), y), deploy=loader(standard(u), v % 3))
    assert report.gap.states["deployed"] > 3 * report.gap.states["eval"]
    assert "VS307" not in {one.code for one in report.findings}


def test_inputs_that_are_no_real_numbers_are_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )
    batches = [(torch.randint(20, (32, 5)), torch.randint(2, (32,))) for _ in range(5)]
    for x, _ in batches * 5:
        net(x)
    with torch.no_grad():
        net[2].weight.mul_(3)
    report = vs.check(copy.deepcopy(net), batches, deploy=batches)
    assert not {"VS306", "VS307"} & {one.code for one in report.findings}
