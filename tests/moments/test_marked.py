"""Statistics that bear the mark of a recalibration: the prediction knows that noise is not in them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import varshift as vs


def batches(count=40):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(16, 4, 3, padding=1), nn.BatchNorm2d(4),
    )  # fmt: skip
    with torch.no_grad():
        for x in batches():
            model(x)
    return model


def recalibrated(network, **settings):
    model = copy.deepcopy(network)
    vs.recalibrate(model, **settings)
    return model


@pytest.mark.parametrize("settings", [{"loader": batches()}, {"shape": (3, 8, 8)}], ids=["data", "free"])
def test_no_shift_is_predicted_that_was_removed(network, settings):
    model = recalibrated(network, **settings)
    sick = {layer.name: layer for layer in vs.predict(network, shape=(3, 8, 8)).layers}
    prediction = vs.predict(model, shape=(3, 8, 8))
    for layer in prediction.layers:
        assert (layer.ratio, layer.mean_offset) == pytest.approx((1.0, 0.0), abs=1e-6)
        # What the noise does in training it still does; white inputs mislead the sick prediction a little.
        assert layer.local_ratio == pytest.approx(sick[layer.name].local_ratio, rel=0.2)
    assert sick["5"].ratio < 0.6
    assert sick["9"].ratio < 0.4
    assert any("re-estimated without noise" in limit for limit in prediction.limits)


@pytest.mark.parametrize("data", [None, batches(2)[0]], ids=["anchored", "hybrid"])
def test_what_is_predicted_for_training_agrees_with_what_is_measured(network, data):
    model = recalibrated(network, loader=batches())
    measured = vs.check(model, batches(16), select=["VS207"]).layers
    shape = (3, 8, 8) if data is None else None
    prediction = vs.predict(model, data, shape=shape)
    for layer in prediction.layers:
        (row,) = [one for one in measured if one.name == layer.name]
        assert layer.local_ratio == pytest.approx(row.local_ratio, rel=0.15)
        assert layer.ratio == pytest.approx(1, abs=1e-6)


def test_a_check_without_data_finds_no_shift_in_a_cured_network(network):
    sick = vs.check(network, shape=(3, 8, 8))
    shift = {"VS102", "VS207"}  # the cause, or the shift itself where no cause is named
    assert shift & {finding.code for finding in sick.findings}
    assert any("mark of varshift.recalibrate" in limit for limit in sick.limits)
    for settings in ({"loader": batches()}, {"shape": (3, 8, 8)}):
        cured = vs.check(recalibrated(network, **settings), shape=(3, 8, 8))
        assert not [finding for finding in cured.findings if finding.severity == "error"]
        assert "VS207" not in {finding.code for finding in cured.findings}
        assert not any("mark of varshift.recalibrate" in limit for limit in cured.limits)


def test_training_wipes_the_mark_out(network):
    model = recalibrated(network, loader=batches()).train()
    with torch.no_grad():
        for x in batches():
            model(x)
    assert min(layer.ratio for layer in vs.predict(model.eval(), shape=(3, 8, 8)).layers) < 0.6
