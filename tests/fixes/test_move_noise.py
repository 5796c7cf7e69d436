"""Noise that is moved acts at its new place and nowhere else, and evaluation computes what it did."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from skip_block import Skip
from torch import Tensor, nn

import varshift as vs
from varshift.fixes import Refused
from varshift.flow import capture
from varshift_lab.networks import densenet, preresnet, resnet


def moved(model: nn.Module, example: Tensor, to: str, **options) -> vs.Cured:
    """The network with all its noise moved that is wrong for this place."""
    cure = vs.Cure("move-noise", "", "unsafe", None, {"to": to, **options})
    cured = vs.fix(model, example_inputs=example, cures=[cure], unsafe=True)
    assert not cured.failures, cured.failures
    return cured


def noises(model: nn.Module, example: Tensor) -> list[tuple[str, str, float | None]]:
    """Module, kind and rate of all noise in training; there is none in evaluation."""
    flows = capture(model, example)
    assert flows.train is not None
    assert flows.eval is not None
    assert not flows.eval.noises
    return [(site.name, site.kind, site.rate) for site in flows.train.noises]


def require_equal(model: nn.Module, cured: nn.Module, example: Tensor) -> None:
    """Same names, same outputs in evaluation, still so after copying; and it can be trained."""
    assert list(model.state_dict()) == list(cured.state_dict())
    expected = copy.deepcopy(model).eval()(example)
    for version in (cured, copy.deepcopy(cured), pickle.loads(pickle.dumps(cured))):
        torch.testing.assert_close(version.eval()(example), expected, rtol=0, atol=0)
    trained = copy.deepcopy(cured).train()
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    for _ in range(2):
        outputs = trained(example)
        values = outputs.values() if isinstance(outputs, dict) else [outputs]
        optimizer.zero_grad()
        sum(value.square().mean() for value in values).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


def codes(model: nn.Module, example: Tensor) -> set[str]:
    return {finding.code for finding in vs.check(model, example_inputs=example).findings}


class Early(nn.Module):
    """Dropout in front of a norm, as a module or as a function; a head or two."""

    def __init__(self, *, functional: bool = False, heads: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.functional = functional
        self.heads = nn.ModuleDict({f"head{number}": nn.Linear(8, 3) for number in range(heads)})

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.dropout(x, 0.3, self.training) if self.functional else self.drop(x)
        x = F.relu(self.norm2(self.conv2(x))).mean((2, 3))
        scores = {name: head(x) for name, head in self.heads.items()}
        return scores if len(scores) > 1 else scores["head0"]


IMAGES = torch.randn(4, 3, 12, 12)


class TestHead:
    @pytest.mark.parametrize("functional", [False, True])
    def test_one_head(self, functional):
        model = Early(functional=functional)
        assert "VS102" in codes(model, IMAGES)
        cured = moved(model, IMAGES, "head")
        assert noises(cured.model, IMAGES) == [("heads.head0", "dropout", 0.3)]
        require_equal(model, cured.model, IMAGES)
        assert not codes(cured.model, IMAGES) & {"VS101", "VS102"}
        assert noises(model, IMAGES)[0][0] in ("", "drop")

    def test_two_heads(self):
        model = Early(heads=2)
        cured = moved(model, IMAGES, "head")
        assert noises(cured.model, IMAGES) == [
            ("heads.head0", "dropout", 0.3),
            ("heads.head1", "dropout", 0.3),
        ]
        require_equal(model, cured.model, IMAGES)

    def test_several_sites_move_to_one_place_at_the_rate_of_the_strongest(self):
        layers = [(nn.Linear(8, 8), nn.Dropout(rate), nn.BatchNorm1d(8)) for rate in (0.1, 0.4, 0.2)]
        model = nn.Sequential(*[layer for block in layers for layer in block], nn.Linear(8, 2))
        x = torch.randn(16, 8)
        assert "VS101" in codes(model, x)
        cured = moved(model, x, "head")
        assert noises(cured.model, x) == [("9", "dropout", 0.4)]
        require_equal(model, cured.model, x)
        assert "VS101" not in codes(cured.model, x)
        assert noises(moved(model, x, "head", rate=0.25).model, x) == [("9", "dropout", 0.25)]

    @pytest.mark.parametrize(("there", "rate"), [(0.5, 0.5), (0.1, 0.3)])
    def test_noise_that_is_there_already_takes_it_in(self, there, rate):
        model = nn.Sequential(
            nn.Linear(8, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Dropout(there), nn.Linear(8, 2)
        )
        x = torch.randn(16, 8)
        cured = moved(model, x, "head")
        assert [(kind, p) for _, kind, p in noises(cured.model, x)] == [("dropout", rate)]
        assert "joins the noise that is there already: '3:dropout'" in cured.notes[0]
        require_equal(model, cured.model, x)

    @pytest.mark.parametrize("noise", [vs.nn.UniformDropout(0.2), vs.nn.GaussianDropout(0.3)])
    def test_noise_keeps_its_kind(self, noise):
        model = nn.Sequential(nn.Linear(8, 8), noise, nn.BatchNorm1d(8), nn.Linear(8, 2))
        x = torch.randn(16, 8)
        before = noises(model, x)
        cured = moved(model, x, "head")
        assert noises(cured.model, x) == [("3", *before[0][1:])]
        require_equal(model, cured.model, x)

    def test_noise_at_its_place_stays(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        cure = vs.Cure("move-noise", "", "unsafe", vs.SiteId("2", "dropout"), {"to": "head"})
        cured = vs.fix(model, example_inputs=torch.randn(16, 8), cures=[cure], unsafe=True)
        assert "at this place already" in str(cured.failures)
        assert not cured.changes

    def test_a_network_that_ends_in_a_norm(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.BatchNorm1d(8))
        cure = vs.Cure("move-noise", "", "unsafe", None, {"to": "head"})
        cured = vs.fix(model, example_inputs=torch.randn(16, 8), cures=[cure], unsafe=True)
        assert "no weight layer follows the last norm" in str(cured.failures)


def test_from_the_finding_to_the_new_place():
    torch.manual_seed(0)
    layers = (nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    model, x = nn.Sequential(*layers), torch.randn(64, 8)
    for _ in range(100):
        model.train()(x)
    learned = model[3].running_var.clone()
    loader = [(part, torch.zeros(16, dtype=torch.long)) for part in x.split(16)]
    cured = vs.fix(model, loader=loader, unsafe=True, select=["VS101"])
    assert not cured.failures
    assert {change.cure for change in cured.changes} == {"move-noise", "recalibrate"}
    assert noises(cured.model, x) == [("5", "dropout", 0.5)]
    assert cured.after is not None
    assert not [finding.code for finding in cured.after.findings if finding.code < "VS300"]
    assert torch.equal(model[3].running_var, learned)
    normed = nn.Sequential(*list(cured.model.eval())[:4])(x)
    assert 0.9 < normed.var(0).mean() < 1.1  # the statistics are those without noise


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.noise = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.noise(self.conv1(F.relu(self.norm1(x))))
        return x + self.conv2(F.relu(self.norm2(h)))


def residual(*blocks: nn.Module) -> nn.Module:
    head = (nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *head)


def test_branch_slot():
    model = residual(PreActivation(), PreActivation())
    assert {"VS101", "VS103"} & codes(model, IMAGES)
    cured = moved(model, IMAGES, "branch-slot")
    assert noises(cured.model, IMAGES) == [("1.conv2", "dropout", 0.3), ("2.conv2", "dropout", 0.3)]
    require_equal(model, cured.model, IMAGES)
    assert not {"VS101", "VS103"} & codes(cured.model, IMAGES)


class Pooled(nn.Module):
    """Dropout after global average pooling, by modules or by functions."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        if self.functional:
            return self.fc(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.5, self.training))
        return self.fc(self.drop(self.pool(x).flatten(1)))


@pytest.mark.parametrize("functional", [False, True])
def test_before_pooling(functional):
    model = Pooled(functional=functional)
    assert "VS104" in codes(model, IMAGES)
    cured = moved(model, IMAGES, "before-pooling")
    assert noises(cured.model, IMAGES) == [("" if functional else "pool", "dropout", 0.5)]
    require_equal(model, cured.model, IMAGES)
    assert "VS104" not in codes(cured.model, IMAGES)


class MaxPooled(nn.Module):
    """Dropout in front of a max pooling, by modules or by functions."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(200, 3)
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.2)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.functional:
            return self.fc(F.max_pool2d(F.dropout(x, 0.2, self.training), 2).flatten(1))
        return self.fc(self.pool(self.drop(x)).flatten(1))


@pytest.mark.parametrize("functional", [False, True])
def test_after_pooling(functional):
    model = MaxPooled(functional=functional)
    assert "VS105" in codes(model, IMAGES)
    cured = moved(model, IMAGES, "after-pooling")
    assert noises(cured.model, IMAGES) == [("" if functional else "pool", "dropout", 0.2)]
    require_equal(model, cured.model, IMAGES)
    assert "VS105" not in codes(cured.model, IMAGES)


@pytest.mark.parametrize("wrong", ["identity", "everything"])
def test_drop_path_to_the_branch(wrong):
    model = nn.Sequential(nn.Linear(8, 8), Skip(wrong), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 8)
    assert "VS107" in codes(model, x)
    cured = moved(model, x, "branch")
    flow = capture(cured.model, x).train
    assert flow is not None
    assert [(site.name, site.kind, site.drops) for site in flow.noises] == [
        ("1.body.2", "drop_path", "branch")
    ]
    require_equal(model, cured.model, x)
    assert "VS107" not in codes(cured.model, x)


def test_where_the_outputs_are_linear_in_it():
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(16, 8)
    cured = moved(model, x, "linear")
    assert noises(cured.model, x) == [("3", "dropout", 0.5)]
    require_equal(model, cured.model, x)


def test_an_unknown_place():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with pytest.raises((vs.VarshiftError, Refused), match="to='tail' is no place for noise"):
        moved(model, torch.randn(4, 8), "tail")


class TwoCalls(nn.Module):
    """Two calls of dropout in one method, of which one is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(F.dropout(self.conv(x), 0.3, self.training)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(F.dropout(x, 0.5, self.training))


def test_the_other_noise_of_the_method_stays():
    model = TwoCalls()
    cured = moved(model, IMAGES, "before-pooling")
    assert sorted(noises(cured.model, IMAGES)) == [("", "dropout", 0.3), ("", "dropout", 0.5)]
    require_equal(model, cured.model, IMAGES)
    again = vs.apply_plan(TwoCalls(), cured.plan)
    assert noises(again.model, IMAGES) == noises(cured.model, IMAGES)


@pytest.mark.parametrize("placement", ["A", "B", "D", "G"])
def test_all_blocks_of_a_published_network(placement):
    x = torch.randn(4, 3, 16, 16)
    model = preresnet(14, dropout=0.3, placement=placement)
    slots = [f"stages.{stage}.{block}.conv2" for stage in range(3) for block in range(2)]
    cured = moved(model, x, "branch-slot")
    assert noises(cured.model, x) == [(slot, "dropout", 0.3) for slot in slots]
    require_equal(model, cured.model, x)
    assert noises(moved(model, x, "head").model, x) == [("linear", "dropout", 0.3)]


def test_a_published_network_whose_branches_are_concatenated():
    x = torch.randn(4, 3, 16, 16)
    model = densenet(13, dropout=0.2)
    assert len(noises(model, x)) > 8
    cured = moved(model, x, "head")
    assert noises(cured.model, x) == [("linear", "dropout", 0.2)]
    require_equal(model, cured.model, x)


def test_blocks_that_end_in_a_norm_are_refused():
    model = resnet(14, dropout=0.3, placement="C")
    x = torch.randn(4, 3, 16, 16)
    name, kind, _ = noises(model, x)[0]
    cure = vs.Cure("move-noise", "", "unsafe", vs.SiteId(name, kind), {"to": "branch-slot"})
    cured = vs.fix(model, example_inputs=x, cures=[cure], unsafe=True)
    assert "no weight that all of it passes after its last norm" in str(cured.failures)
    assert noises(cured.model, x) == noises(model, x)
