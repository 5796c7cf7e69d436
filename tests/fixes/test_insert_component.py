"""Independent-component layers in front of weight layers: ReLU, batch norm, dropout, weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs
from varshift.flow import capture

IMAGES = torch.randn(4, 3, 12, 12)


def inserted(model: nn.Module, example: Tensor, target: str | None = None, **options) -> vs.Cured:
    site = None if target is None else vs.SiteId(target, "module")
    cure = vs.Cure("insert-components", "", "unsafe", site, options)
    return vs.fix(model, example_inputs=example, cures=[cure], unsafe=True)


def order(model: nn.Module, example: Tensor) -> list[str]:
    """What happens to the signal, in order; views and counters left out."""
    flow = capture(model, example).train
    assert flow is not None
    kinds = ("weight", "norm", "activation", "noise", "join", "pool")
    signal = {node.index for node in flow.nodes if node.kind == "input"}
    steps = []
    for node in flow.nodes:
        if any(index in signal for index in node.inputs):
            signal.add(node.index)
            steps += [node.op] if node.kind in kinds else []
    return steps


class Plain(nn.Module):
    """weight, norm, ReLU, twice, and a classifier."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.act, self.fc = nn.ReLU(inplace), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_the_norm_moves_after_the_activation(inplace):
    model = Plain(inplace=inplace)
    cured = inserted(model, IMAGES)
    assert not cured.failures
    relu = "relu"
    assert order(cured.model, IMAGES) == [
        *("conv2d", relu, "batch_norm", "dropout", "conv2d", relu, "mean"),
        *("batch_norm", "dropout", "linear"),
    ]
    kept = {"conv1.weight", "conv2.weight", "fc.weight", "fc.bias"}
    new = set(cured.model.state_dict()) - kept
    assert kept < set(cured.model.state_dict())
    assert all(name.startswith(("conv2.independent_component.", "fc.independent_component.")) for name in new)
    assert [change.after for change in cured.changes if change.after] == [
        repr(cured.model.conv2.independent_component),
        repr(cured.model.fc.independent_component),
    ]
    assert isinstance(cured.model.conv2, nn.Conv2d)
    assert list(model.state_dict()) == list(Plain().state_dict())


def test_all_norms_can_stay():
    model = Plain()
    cured = inserted(model, IMAGES, norms="keep", drop_prob=0.2)
    assert set(model.state_dict()) < set(cured.model.state_dict())
    assert order(cured.model, IMAGES)[:6] == [
        "conv2d",
        "batch_norm",
        "relu",
        "batch_norm",
        "dropout",
        "conv2d",
    ]
    assert cured.model.fc.independent_component.drop_prob == 0.2


def test_one_layer_only():
    cured = inserted(Plain(), IMAGES, "fc")
    assert order(cured.model, IMAGES).count("batch_norm") == 2  # norm2, which only fc reads, is replaced
    assert not hasattr(cured.model.conv2, "independent_component")


def test_the_network_is_trained_copied_and_saved():
    cured = inserted(Plain(), IMAGES).model
    optimizer = torch.optim.SGD(cured.train().parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        cured(IMAGES).square().mean().backward()
        optimizer.step()
    assert cured.conv2.independent_component.norm.num_batches_tracked == 2
    expected = cured.eval()(IMAGES)
    for version in (copy.deepcopy(cured), pickle.loads(pickle.dumps(cured))):
        torch.testing.assert_close(version(IMAGES), expected, rtol=0, atol=0)
        version.load_state_dict(cured.state_dict())


def test_compiled_and_exported():
    cured = inserted(Plain(), IMAGES).model.eval()
    expected = cured(IMAGES)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(cured, fullgraph=True, backend="eager")(IMAGES), expected)
    program = torch.export.export(cured, (IMAGES,), strict=False)
    torch.testing.assert_close(program.module()(IMAGES), expected)


class Residual(nn.Module):
    """A pre-activation block with a projection and, where asked, a gate."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.short, self.act = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))
        h = h * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(h, 1)))
        return self.short(x) + h


@pytest.mark.parametrize("inplace", [False, True])
def test_shortcuts_and_gates_get_none(inplace):
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(inplace=inplace), *head)
    cured = inserted(model, IMAGES)
    assert not cured.failures
    paths = [change.site.module for change in cured.changes if change.after]
    assert paths == ["1.conv1", "1.conv2", "4"]
    gone = [change.site.module for change in cured.changes if not change.after]
    # In place, the activation would overwrite what the projection reads.
    assert gone == (["1.norm2"] if inplace else ["1.norm1", "1.norm2"])


class NormAndActivation(nn.BatchNorm2d):
    """A norm with its activation in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


def test_a_norm_that_does_more_than_normalise_stays():
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    cured = inserted(nn.Sequential(nn.Conv2d(3, 8, 3), NormAndActivation(8), *head), IMAGES)
    assert not cured.failures
    steps = ["conv2d", "batch_norm", "relu", "adaptive_avg_pool2d", "batch_norm", "dropout", "linear"]
    assert order(cured.model, IMAGES) == steps


def test_nothing_qualifies():
    tokens = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    cured = inserted(tokens, torch.randn(2, 5, 8))
    assert "no weight layer qualifies" in str(cured.failures)
    with pytest.raises(vs.VarshiftError, match="norms='drop' is unknown"):
        inserted(Plain(), IMAGES, norms="drop")


def test_a_plan_repeats_it():
    model = Plain()
    cured = inserted(model, IMAGES)
    again = vs.apply_plan(Plain(), cured.plan)
    assert list(again.model.state_dict()) == list(cured.model.state_dict())
