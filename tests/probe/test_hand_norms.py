"""Norms written by hand are measured and recalibrated whatever holds their statistics, or are named."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import varshift as vs
from varshift.flow import capture, recognised_norms
from varshift.model import find_norms
from varshift.probe import measure

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from hand_norms import LOOK_ALIKES, NORMS

SUPPORTED = [name for name, (*_, supported) in NORMS.items() if supported]
UNSUPPORTED = [name for name, (*_, supported) in NORMS.items() if not supported]


def data(name, batches=3):
    """Batches without targets, as tuples of inputs."""
    shape = NORMS[name][1]
    generator = torch.Generator().manual_seed(1)
    if name.startswith("kind rows"):
        kind = torch.arange(24) % 2  # no sample is of the third kind
        return [
            (torch.randn(24, 4, generator=generator) * 2 + 1 + kind[:, None], kind) for _ in range(batches)
        ]
    return [(torch.randn(16, *shape[1:], generator=generator) * 2 + 1,) for _ in range(batches)]


def norms_of(network, name):
    return find_norms(network, recognised_norms(network, capture(network, data(name)[0])))


def state_of(network):
    """Every tensor that the network holds anywhere."""
    held = {}
    for path, module in network.named_modules():
        for key, value in (*vars(module).items(), *module._parameters.items(), *module._buffers.items()):
            for item_key, item in value.items() if isinstance(value, dict) else ((None, value),):
                if isinstance(item, torch.Tensor):
                    held[path, key, item_key] = (item, item.detach().clone())
    return held


def assert_untouched(network, before):
    after = state_of(network)
    assert after.keys() == before.keys()
    for place, (tensor, value) in before.items():
        assert after[place][0] is tensor
        assert torch.equal(tensor, value)


def inputs_of(network, name):
    """What the norm normalises, as ``(values, channels)``, computed without varshift."""
    batches = data(name)
    with torch.no_grad():
        if name.startswith("kind rows"):
            return torch.cat([network.inner(x) for x, _ in batches])
        x = torch.cat([network[0](batch[0]) for batch in batches])
        if name == "inside a block":
            return F.relu(network[1].mix(x))
        if name == "one number":
            return x.reshape(-1, 1)
        if name == "each element":
            return x.flatten(1)
        return x.flatten(0, 1) if x.dim() == 3 else x


def expected(network, name):
    """Mean and variance that the norm has to have after recalibration."""
    x = inputs_of(network, name)
    if name == "instances":
        return x.mean((0, 2, 3)), x.var((2, 3)).mean(0)
    if name == "running power":
        return torch.zeros(6), x.square().mean(0)
    if name.startswith("kind rows"):
        kind = torch.cat([kind for _, kind in data(name)])
        rows = [(x[kind == k].mean(0), x[kind == k].var(0)) for k in (0, 1)]
        return torch.stack([m for m, _ in rows]), torch.stack([v for _, v in rows])
    return x.mean(0), x.var(0)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_norm_written_by_hand_is_measured_and_recalibrated_and_given_back(name):
    torch.manual_seed(0)
    network = NORMS[name][0]()
    before = state_of(network)
    measurement = measure(network, data(name))
    assert_untouched(network, before)
    layer = measurement.layers[0]
    assert layer.reached
    norm = norms_of(network, name)[0]
    mean, var = expected(network, name)
    assert layer.moving_var == pytest.approx(1.0, rel=1e-3)
    # Averages over samples are not pooled: their weights differ slightly from one batch to all of them.
    assert layer.real_var == pytest.approx(float(var.mean()), rel=2e-2 if name == "instances" else 1e-4)
    assert not any("could not be measured" in limit for limit in measurement.limits)
    handle = vs.recalibrate(network, data(name))
    if name == "frozen":
        assert handle.skipped == {"1": "it uses its running statistics in training too"}
        assert_untouched(network, before)
        return
    assert handle.skipped == {}
    own_mean, own_var = norm.mean.detach(), norm.var.detach()
    if name == "domain rows":
        assert bool((network[1].rows_b[[0, 2]] == 1).all())
        own_mean, own_var = own_mean[1], own_var[1]
    if name.startswith("kind rows"):
        own_mean, own_var = own_mean[:2], own_var[:2]
    torch.testing.assert_close(own_mean.reshape(mean.shape), mean, rtol=1e-4, atol=1e-5)
    tolerance = 2e-2 if name == "instances" else 1e-4
    torch.testing.assert_close(own_var.reshape(var.shape), var, rtol=tolerance, atol=1e-5)
    assert measure(network, data(name)).layers[0].ratio == pytest.approx(1.0, rel=1e-3)
    handle.undo()
    assert_untouched(network, before)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_norm_that_cannot_be_measured_is_named_and_left_alone(name):
    torch.manual_seed(0)
    network = NORMS[name][0]()
    before = state_of(network)
    report = vs.check(network, data(name))
    assert [limit for limit in report.limits if limit.startswith("The norm '1'")] != []
    assert not any("never reached" in finding.message for finding in report.findings)
    handle = vs.recalibrate(network, data(name))
    assert list(handle.skipped) == ["1"]
    assert math.isnan(handle.layers[0].var_before)
    assert_untouched(network, before)


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_nothing_is_measured_or_written_where_there_is_no_norm(name):
    torch.manual_seed(0)
    network = LOOK_ALIKES[name]()
    before = state_of(network)
    batches = [torch.randn(5, 4) for _ in range(2)]
    assert [layer for layer in measure(network, batches).layers if layer.reached] == []
    handle = vs.recalibrate(network, batches)
    assert handle.layers == ()
    assert_untouched(network, before)


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_the_flow_are_rows_of_the_measurement_or_limits(name):
    torch.manual_seed(0)
    network = NORMS[name][0]()
    captured = capture(network, data(name)[0])
    measurement = measure(network, data(name))
    rows = {layer.name for layer in measurement.layers}
    for flow in (captured.train, captured.eval):
        for site in flow.norms:
            named = any(f"'{site.name}'" in limit for limit in measurement.limits)
            assert (site.name in rows) != named


def test_a_handle_says_that_it_had_data_although_there_was_nothing_to_update():
    assert "without data" not in repr(vs.recalibrate(nn.Linear(4, 3), [torch.randn(4, 4)]))
    assert "from 2 batches" in repr(
        vs.recalibrate(LOOK_ALIKES["codebook"](), [torch.randn(4, 4), torch.randn(4, 4)])
    )


def test_a_module_that_adds_noise_and_normalises_is_named():
    class Noisy(type(NORMS["lerped"][0]()[1])):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    network = nn.Sequential(nn.Linear(4, 6), Noisy(), nn.Linear(6, 3))
    handle = vs.recalibrate(network, data("lerped"))
    assert list(handle.skipped) == ["1"]
    assert "noise" in handle.skipped["1"]


def test_a_row_of_statistics_that_cannot_be_told_is_named():
    class Hidden(type(NORMS["domain rows"][0]()[1])):
        """Reaches its rows in a way that no tensor operation on the statistics shows."""

        def forward(self, x):
            a, b = self.rows_a.unbind()[self.domain], self.rows_b.unbind()[self.domain]
            if self.training:
                with torch.no_grad():
                    a.lerp_(x.mean(0), 0.1)
                    b.lerp_(x.var(0), 0.1)
                a, b = x.mean(0), x.var(0)
            return (x - a) / (b + 1e-5).sqrt()

    network = nn.Sequential(nn.Linear(4, 6), Hidden(), nn.Linear(6, 3))
    measurement = measure(network, data("lerped"))
    assert measurement.layers == ()
    assert any("'1'" in limit for limit in measurement.limits)
    assert list(vs.recalibrate(network, data("lerped")).skipped) == ["1"]
