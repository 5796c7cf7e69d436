"""No pass runs on the user's model: whatever a network writes, model and data are as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_networks import CLASSES, NETWORKS, WIDTH, Noisy
from state_digest import Digest, process_state
from torch import nn

import varshift as vs
from varshift.model import preserved, shadowed
from varshift.probe import measure


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    data = []
    for _ in range(3):
        x = torch.randn(8, WIDTH, generator=generator) * 2 + 1
        data.append((x, torch.randint(CLASSES, (8,), generator=generator)))
    return data


ACTS: dict[str, Callable[..., Any]] = {
    "measure": measure,
    "recalibrate and undo": lambda model, data: vs.recalibrate(model, data).undo(),
    "check": vs.check,
    "predict": vs.predict,
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_model_data_and_process_are_as_before(network, act):
    torch.manual_seed(0)
    model, data = NETWORKS[network](), batches()
    model.train()
    before, process = Digest(model=model, data=data), process_state()
    ACTS[act](model, data)
    assert before.differences(Digest(model=model, data=data)) == []
    assert process_state() == process


@pytest.mark.parametrize("network", NETWORKS)
def test_recalibration_changes_nothing_but_statistics(network):
    torch.manual_seed(0)
    model = NETWORKS[network]()
    before = Digest(model=model)
    vs.recalibrate(model, batches())
    changed = before.differences(Digest(model=model))
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert all(path.endswith(tuple(f"['{name}']" for name in names)) for path in changed), changed


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "uncopyable"])
def test_a_shadow_computes_what_the_model_computes(network):
    torch.manual_seed(0)
    model, data = NETWORKS[network](), batches()
    x = data[0][0]
    for training in (True, False):
        with shadowed(model, seed=3) as shadow, torch.no_grad():
            outputs = shadow.network.train(training)(x.clone())
        with preserved(model, seed=3), torch.no_grad():
            assert torch.equal(outputs, model.train(training)(x.clone()))


def test_a_shadow_is_reset_to_what_the_model_is():
    model = Noisy()
    x = batches()[0][0]
    with shadowed(model) as shadow:
        expected = Digest(model=shadow.network)
        shadow.network.train()
        shadow.network(x)
        shadow.network.head = nn.Identity()
        shadow.network.norm.weight.data = torch.zeros(WIDTH)
        shadow.network.norm.register_buffer("more", x)
        assert shadow.wrote(shadow.network.norm.running_mean)
        shadow.fresh()
        assert expected.differences(Digest(model=shadow.network)) == []
        assert not shadow.wrote(shadow.network.norm.running_mean)


def test_what_is_tied_stays_tied():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "view": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model["view"].register_buffer("row", model["a"].weight.detach()[1])
    with shadowed(model) as shadow:
        twin = shadow.network
        assert twin["a"].weight is twin["b"].weight
        with torch.no_grad():
            twin["a"].weight.zero_()
        assert torch.equal(twin["view"].row, torch.zeros(3))
    assert model["a"].weight.abs().min() > 0


def test_weights_of_a_large_network_are_copied_when_they_are_written(monkeypatch):
    monkeypatch.setattr("varshift.model._tensors.LARGE_NETWORK", 0)
    model = nn.Sequential(nn.Linear(600, 600), nn.BatchNorm1d(600), nn.Linear(600, 600))
    before = Digest(model=model)
    x = torch.randn(4, 600)
    with shadowed(model) as shadow, torch.no_grad():
        first, last = shadow.network[0].weight, shadow.network[2].weight
        expected = shadow.network(x)
        assert all(torch._C._is_cow_tensor(weight) for weight in (first, last))  # pyright: ignore
        first.mul_(2)
        last.detach().numpy()[0] = 7.0
        assert shadow.wrote(first)
        assert shadow.wrote(last)
        shadow.fresh()
        assert torch.equal(shadow.network(x), expected)
    assert before.differences(Digest(model=model)) == []


def test_a_model_that_cannot_be_copied_is_run_itself_and_restored():
    class Opaque(nn.Module, Exception):  # noqa: N818
        """No empty instance can be made of a class with such a base."""

        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            self.head.weight.data.mul_(2)
            self.head.bias.data = self.head.bias + 1
            self.last = x
            return self.head(self.norm(x))

    model = Opaque()
    before = Digest(model=model)
    report = vs.check(model, batches())
    assert before.differences(Digest(model=model)) == []
    assert [limit for limit in report.limits if "cannot be copied" in limit]
