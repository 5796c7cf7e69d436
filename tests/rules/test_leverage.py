"""VS211: one sample or batch that dominates the statistics, on trained networks and in hand-made moments."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


def digits(spoil=None):
    data = datasets.load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None]
    x, y = (x - x.mean()) / x.std(), torch.tensor(data.target)
    x, y = x[:768].clone(), y[:768]
    if spoil is not None:
        x[7] = spoil(x[7])
    return x, y


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def trained(make, x, y, epochs=4):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(epochs):
        for part, target in DataLoader(TensorDataset(x, y), 48, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(part), target).backward()
            optimizer.step()
    return model


def batches(x, y, size=48):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module", params=[convolutional, dense])
def spoiled(request):
    x, y = digits(lambda image: image * 80 + 300)
    return trained(request.param, x, y), x, y


def loud(report):
    return [finding.code for finding in report.findings if finding.severity != "advice"]


def test_a_raw_image_is_named_and_nothing_else(spoiled):
    model, x, y = spoiled
    report = vs.check(model, batches(x, y))
    assert loud(report) == ["VS211"]
    (finding,) = [one for one in report.findings if one.code == "VS211"]
    assert finding.severity == "error"
    assert (finding.evidence["batch"], finding.evidence["sample"]) == (0, 7)
    assert finding.evidence["inflation"] > 10
    assert "Sample 7 of batch 0" in finding.message
    assert [cure.code for cure in finding.cures] == ["mend-sample"]
    assert report.verdict.code == "VS211"


def test_stored_statistics_that_hold_it_show_it_without_it(spoiled):
    model, x, y = spoiled
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        for part, _ in batches(x, y)[:4]:
            model(part)  # the raw image is the first batch's
    report = vs.check(model, batches(x, y)[1:])
    assert loud(report) == ["VS211"]
    (finding,) = [one for one in report.findings if one.code == "VS211"]
    assert "batch" not in finding.evidence
    assert "None of these batches holds it" in finding.message


def test_recalibrate_names_it_and_warns(spoiled):
    model, x, y = copy.deepcopy(spoiled[0]), *spoiled[1:]
    with pytest.warns(vs.VarshiftWarning, match="sample 7 of batch 0 dominates"):
        handle = vs.recalibrate(model, batches(x, y))
    assert (handle.leverage.batch, handle.leverage.sample) == (0, 7)
    assert "sample 7 of batch 0" in repr(handle)
    # The statistics that remain hold it, and so do those that the effect was measured with.
    assert handle.effect.after > 1
    assert vs.recalibrate(copy.deepcopy(model), batches(x, y)[1:]).leverage is None


@pytest.mark.parametrize("make", [convolutional, dense])
def test_clean_data_are_let_pass(make):
    x, y = digits()
    model = trained(make, x, y)
    assert "VS211" not in {finding.code for finding in vs.check(model, batches(x, y)).findings}
    assert vs.recalibrate(model, batches(x, y)).leverage is None


@pytest.mark.parametrize("scale", [0.05, 0.3, 4.0, 20.0])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_other_data_are_not_one_sample(scale, shift):
    x, y = digits()
    model = trained(convolutional, x, y, epochs=1)
    report = vs.check(model, batches(x * scale + shift, y), select=["VS211"])
    assert report.findings == ()


def test_other_data_without_a_mean_are_not_one_sample():
    torch.manual_seed(0)
    first, last = nn.Conv1d(1, 16, 9, bias=False), nn.Linear(896, 2)
    model = nn.Sequential(first, nn.BatchNorm1d(16), nn.Flatten(), last)
    y = torch.randint(2, (640,))
    with torch.no_grad():
        for part in torch.randn(640, 1, 64).mul(5).split(32):
            model(part)
    smooth = F.avg_pool1d(torch.randn(640, 1, 72), 9, 1)  # a quarter of the size, another spectrum
    report = vs.check(model, batches(smooth, y, 32), select=["VS211"])
    assert report.findings == ()


def test_batches_of_several_sources_are_no_exception():
    x, y = digits()
    parts = batches(x, y)
    parts = [(part * (8 if number % 3 == 0 else 1), target) for number, (part, target) in enumerate(parts)]
    model = trained(convolutional, x, y, epochs=1)
    assert vs.check(model, parts, select=["VS211"]).findings == ()


def test_batches_that_differ_widely_among_themselves_are_no_exception():
    generator = torch.Generator().manual_seed(0)
    loudness = torch.randn(24, generator=generator).mul(0.8).exp()
    clips = [torch.randn(1, 8, 400, generator=generator) * factor for factor in loudness]
    leverage = vs.recalibrate(nn.Sequential(nn.BatchNorm1d(8)), clips).leverage
    assert leverage is None


def test_a_whole_batch_is_named_without_a_sample():
    x, y = digits()
    parts = batches(x, y)
    parts[3] = (parts[3][0] * 60, parts[3][1])
    model = trained(convolutional, x, y, epochs=1)
    with pytest.warns(vs.VarshiftWarning):
        leverage = vs.recalibrate(model, parts).leverage
    assert (leverage.batch, leverage.sample) == (3, None)


def test_a_sample_is_named_where_there_is_one_batch():
    x, y = digits(lambda image: image + 400)
    model = trained(dense, x, y, epochs=1)
    (finding,) = vs.check(model, [(x[:96], y[:96])], select=["VS211"]).findings
    assert (finding.evidence["batch"], finding.evidence["sample"]) == (0, 7)


def test_the_sample_is_found_at_a_later_norm():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.first(x[:, :8]) + self.second(x[:, 8:])

    torch.manual_seed(0)
    x = torch.randn(320, 16)
    x[45, 8:] += 500
    leverage_of = vs.check(TwoInputs(), list(x.split(32)), select=["VS211"]).findings[0]
    assert leverage_of.where == "second"
    assert (leverage_of.evidence["batch"], leverage_of.evidence["sample"]) == (1, 13)


@pytest.mark.parametrize("listed", [False, True], ids=["data set", "list"])
def test_a_sample_that_was_not_drawn_is_found_in_the_data(listed):
    x, y = digits(lambda image: image * 10 + 40)
    model = trained(convolutional, x, y, epochs=2).train()
    with torch.no_grad():
        for part, _ in batches(x, y)[:4]:
            model(part)
    order = torch.arange(len(x)).roll(-48)  # the raw image comes in the last batch
    x, y = x[order], y[order]
    loader = batches(x, y) if listed else DataLoader(TensorDataset(x, y), 48)
    (finding,) = vs.check(model, loader, max_batches=8, select=["VS211"]).findings
    place = {"batch": 15, "sample": 7} if listed else {"sample": 727}
    assert {key: finding.evidence[key] for key in ("batch", "sample") if key in finding.evidence} == place
    assert [cure.code for cure in finding.cures] == ["mend-sample"]
    clean = loader[:8] if listed else DataLoader(TensorDataset(x[:720], y[:720]), 48)
    findings = vs.check(model, clean, max_batches=8, select=["VS211"]).findings
    assert all("sample" not in finding.evidence for finding in findings)
