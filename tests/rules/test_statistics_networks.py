"""Rules about statistics on real networks that are easily taken for sick ones, and on sick ones like them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs
from varshift.flow import capture
from varshift.model import find_norms, norm_facts

STATISTICS = ["VS2"]


def images(count: int = 8, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


class Affine(nn.Module):
    """A frozen norm: the same in both modes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def network(norm=nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        norm(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def learnt(net: nn.Module) -> nn.Module:
    net.train()
    with torch.no_grad():
        for _ in range(5):
            for inputs, _ in images():
                net(inputs)
    return net


@pytest.mark.parametrize("targets", [True, False])
def test_a_frozen_identity_is_no_norm_that_never_moved(targets):
    data = images() if targets else [inputs for inputs, _ in images()]
    assert vs.check(network(Affine), data, select=STATISTICS).findings == ()
    (finding,) = vs.check(network(), data, select=STATISTICS).findings
    assert (finding.code, finding.severity) == ("VS201", "warning" if targets else finding.severity)
    assert finding.evidence["untrained"] is True


def scaled(net: nn.Sequential, variance: float) -> nn.Sequential:
    """The first norm's input, and what it holds, with about this variance."""
    learnt(net)
    with torch.no_grad():
        factor = (variance / net[1].running_var.mean()).sqrt()
        net[0].weight.mul_(factor)
        net[0].bias.mul_(factor)
        net[1].running_mean.mul_(factor)
        net[1].running_var.mul_(factor**2)
    return net.eval()


@pytest.mark.parametrize(("variance", "fires"), [(3e-4, False), (1e-5, False), (1e-9, True)])
def test_small_variances_are_a_fault_where_no_signal_is_left(variance, fires):
    net = scaled(network(), variance)
    found = vs.check(net, images(), select=["VS203"]).findings
    assert [(one.where, one.severity) for one in found] == [("1", "warning")] * fires
    with torch.no_grad():
        net[1].weight.zero_()  # switched off on purpose
    assert vs.check(net, images(), select=["VS203"]).findings == ()


def in_half(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.float16):
        return model(batch[0]).float()


def test_float16_is_spoken_of_where_it_is_computed_in():
    net = scaled(network(), 1e6)
    assert vs.check(net, images(), select=["VS203"]).findings == ()
    (finding,) = vs.check(net, images(), forward=in_half, select=["VS203"]).findings
    assert (finding.where, finding.severity) == ("1", "warning")
    assert "float16" in finding.message


def test_a_flow_names_its_number_types():
    inputs = images()[0][0]
    assert capture(network(), inputs).train.number_types == ("float32",)
    halved = capture(network(), (inputs,), forward=in_half).train
    assert halved.number_types == ("float16", "float32")
    assert capture(network().double(), inputs.double()).eval.number_types == ("float64",)


def test_what_training_moved_of_a_norm():
    net = network()
    first, second = (norm_facts(norm, live=True) for norm in find_norms(net))
    assert (first.affine_moved, second.affine_moved) == (False, False)
    with torch.no_grad():
        net[1].weight[0] = 2.0
        net[4].bias[1] = 0.1
    first, second = (norm_facts(norm, live=True) for norm in find_norms(net))
    assert (first.affine_moved, second.affine_moved) == (True, True)
    (plain,) = (norm_facts(norm, live=True) for norm in find_norms(nn.BatchNorm1d(3, affine=False)))
    assert plain.affine_moved is None


def held() -> nn.Module:
    """Norms that were put in eval() and stay there while the weights after them are trained; other data."""
    net = learnt(network())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(15):
        for inputs, _ in images():
            optimizer.zero_grad()
            F.cross_entropy(net(shifted(inputs)), targets_of(inputs)).backward()
            optimizer.step()
    return net


def shifted(inputs: Tensor) -> Tensor:
    return 2 * inputs + 1


def targets_of(inputs: Tensor) -> Tensor:
    """The quarter with the largest mean: something to learn."""
    quarters = F.adaptive_avg_pool2d(inputs.mean(1, keepdim=True), 2).flatten(1)
    return quarters.argmax(1)


def test_norms_in_eval_mode_within_a_model_in_training_mode_are_held_by_their_user():
    net = held()
    data = [(shifted(inputs), targets_of(inputs)) for inputs, _ in images()]
    before = copy.deepcopy(net.state_dict())
    report = vs.check(net, data, select=STATISTICS)
    assert report.gap.states["recalibrated"] == pytest.approx(report.gap.states["eval"])
    assert {one.severity for one in report.findings} <= {"advice"}
    assert not any(cure.safety == "safe" for one in report.findings for cure in one.cures)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert not net[1].training
    # Who passes it in eval mode does not say so: that the statistics must not be replaced is measured then.
    report = vs.check(net.eval(), data, select=STATISTICS)
    assert [(one.code, one.severity) for one in report.findings] == [("VS210", "error")]
