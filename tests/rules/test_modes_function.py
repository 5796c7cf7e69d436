"""VS405 on hand-made evidence and on networks that compute something else in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import varshift as vs
from varshift.flow import FunctionDifference, Parting

DIFFERENCE = FunctionDifference(None, Parting("head", "Head", "softmax", None, 2), 1)


def found(build, difference=DIFFERENCE, noises=(), **deltas):
    measurement = build.measurement(gap=build.gap_of(spread=1e-3, **deltas))
    known = build.evidence(train=build.flow(noises), difference=difference, measurement=measurement)
    return build.findings("VS405", known)


@pytest.mark.parametrize(
    ("delta", "severity"), [(0.3, "error"), (0.08, "warning"), (0.02, "advice"), (0.001, None), (-0.3, None)]
)
def test_it_is_graded_by_the_step_that_it_answers_for(build, delta, severity):
    result = found(build, function=delta)
    assert [(one.where, one.severity) for one in result] == ([("head", severity)] if severity else [])
    assert all((one.step, one.cost) == ("function", pytest.approx(delta)) for one in result)


def test_without_noise_the_statistics_of_the_other_function_are_a_part_of_it(build):
    (finding,) = found(build, function=0.2, variance_shift=0.5)
    assert finding.cost == pytest.approx(0.7)
    (finding,) = found(build, noises=[build.noise()], function=0.2, variance_shift=0.5)
    assert finding.cost == pytest.approx(0.2)


def test_a_cost_that_no_operation_explains_is_a_finding_of_the_network(build):
    (finding,) = found(build, difference=None, function=0.3)
    assert (finding.where, finding.severity) == ("", "error")
    assert found(build, difference=None, function=0.02) == ()


def test_noise_that_evaluation_keeps_comes_first(build):
    measurement = build.measurement(gap=build.gap_of(spread=1e-3, function=0.3))
    evaluation = build.flow([build.noise()], mode="eval")
    known = build.evidence(train=build.flow(), eval=evaluation, measurement=measurement)
    assert build.findings("VS405", known) == ()


def test_a_difference_that_costs_nothing_is_no_finding(build):
    assert found(build) == ()
    assert found(build, statistics=0.5) == ()


class Net(nn.Module):
    """A network that is sure of its answers, and what it does in evaluation."""

    def __init__(self, kind: str, maps: bool) -> None:
        super().__init__()
        body = [nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Linear(64, 16)] if maps else [nn.Linear(10, 16)]
        self.body, self.norm, self.drop = nn.Sequential(*body), nn.BatchNorm1d(16), nn.Dropout(0.1)
        self.head, self.kind = nn.Linear(16, 3), kind
        self.merged = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.body(x)).relu())
        if self.training or self.kind == "same":
            return 20 * self.head(h)
        if self.kind == "softmax":
            return (20 * self.head(h)).softmax(1)
        if self.kind == "skip":
            return self.head(h)
        if self.merged is None:
            self.merged = self.head.weight.detach().clone()
        return 20 * nn.functional.linear(h, self.merged, self.head.bias)


def trained(kind: str, maps: bool) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net, inputs = Net(kind, maps), torch.randn(8, 32, *((1, 10) if maps else (10,)))
    with torch.no_grad():
        for _ in range(10):
            for x in inputs:
                net(x)
        if kind == "stale":
            net.eval()(inputs[0])
            net.head.weight.copy_(torch.randn_like(net.head.weight))
        net.train()
        net.drop.p = 0.0
        targets = [net(x).argmax(1) for x in inputs]
        net.drop.p = 0.1
    return net, list(zip(inputs, targets, strict=True))


@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
@pytest.mark.parametrize(("kind", "op"), [("softmax", "softmax"), ("skip", None), ("stale", "linear")])
def test_what_only_evaluation_computes_is_named(kind, op, maps):
    model, batches = trained(kind, maps)
    (finding,) = vs.check(model, batches, select=["VS405"]).findings
    assert finding.severity == "error"
    assert finding.source is not None
    if op is not None:
        assert op in finding.evidence["eval_operation"]


@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
def test_the_same_function_in_both_modes_is_sound(maps):
    model, batches = trained("same", maps)
    assert vs.check(model, batches, select=["VS405"]).findings == ()


class Unmoved(nn.Module):
    """Noise written by hand whose rate is zero: in training there are operations that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        if self.training:
            x = x * (1 + 0.0 * torch.randn_like(x))
        return self.last(x)


def test_operations_that_do_nothing_are_no_other_function_however_small_the_batches():
    torch.manual_seed(0)
    model, inputs = Unmoved().train(), [torch.randn(4, 8) for _ in range(12)]
    with torch.no_grad():
        for x in inputs * 4:
            model(x)
    report = vs.check(model.eval(), inputs, select=["VS405"])
    assert report.gap is not None
    assert abs(report.gap.step("small-batch").delta) > 0.1
    assert report.findings == ()
