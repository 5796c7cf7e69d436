"""VS305: several updates of the statistics for one step of the optimiser."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


class Block(nn.Module):
    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.layer(x)))


class HandNorm(nn.Module):
    """A norm under names of its own."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("level", torch.zeros(width))
        self.register_buffer("power", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.level) / (self.power + 1e-5).sqrt()
        mean, var = x.mean(0), x.var(0, unbiased=False)
        with torch.no_grad():
            self.level = (1 - self.momentum) * self.level + self.momentum * mean
            self.power = (1 - self.momentum) * self.power + self.momentum * var
        return (x - mean) / (var + 1e-5).sqrt()


class Net(nn.Module):
    """Two blocks, of which some are recomputed."""

    def __init__(self, kind: str, recompute: tuple[int, ...] = (), momentum: float = 0.1, **how) -> None:
        super().__init__()
        self.recompute, self.how, self.kind = recompute, {"use_reentrant": False, **how}, kind
        if kind == "images":
            layers = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
            norms = [nn.BatchNorm2d(12, momentum=momentum) for _ in range(2)]
        elif kind == "by hand":
            layers, norms = (nn.Linear(8, 12), nn.Linear(12, 12)), [HandNorm(12, momentum) for _ in range(2)]
        else:
            layers = nn.Linear(8, 12), nn.Linear(12, 12)
            norms = [nn.BatchNorm1d(12, momentum=momentum) for _ in range(2)]
        self.blocks = nn.ModuleList(Block(n, layer) for n, layer in zip(norms, layers, strict=True))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 1, 2, 4) if self.kind == "images" else x
        for number, block in enumerate(self.blocks):
            again = self.training and number in self.recompute
            x = checkpoint(block, x, **self.how) if again else block(x)
        return self.head(x.mean((2, 3)) if x.dim() == 4 else x)


KINDS = ["vectors", "images", "by hand"]


def batches(size: int = 16) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(384, 8, generator=generator) + 1
    noise = 0.3 * torch.randn(2, 384, generator=generator)
    y = (x[:, 0] + noise[0] > 1).long() + (x[:, 1] + noise[1] > 1).long()
    return DataLoader(TensorDataset(x, y), size, shuffle=True, drop_last=True)


def plain(model: nn.Module, rate: float = 1e-2):
    optimizer = torch.optim.Adam(model.parameters(), rate)

    def step(net, batch):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def in_pieces(model: nn.Module, pieces: int):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(net, batch):
        optimizer.zero_grad()
        for x, y in zip(batch[0].chunk(pieces), batch[1].chunk(pieces), strict=True):
            (F.cross_entropy(net.train()(x), y) / pieces).backward()
        optimizer.step()

    return step


def uphill(model: nn.Module, *, quiet: bool = False, by_hand: bool = False, rho: float = 2.0):
    """Sharpness-aware, late in a training: a second pass at weights further up."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9)

    def step(net, batch):
        weights = [p for p in net.train().parameters() if p.requires_grad]
        net.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        length = torch.stack([p.grad.norm() for p in weights]).norm()
        moves = [p.grad * (rho / length) for p in weights]
        for p, move in zip(weights, moves, strict=True):
            p.data.add_(move)
        momenta = {norm: norm.momentum for norm in net.modules() if hasattr(norm, "momentum")}
        for norm in momenta if quiet else ():
            norm.momentum = 0.0
        net.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for p, move in zip(weights, moves, strict=True):
            p.data.sub_(move)
        if by_hand:
            for p in weights:
                p.data.sub_(1e-4 * p.grad)
        else:
            optimizer.step()

    return step


def adversarial(model: nn.Module):
    """A discriminator's step: real samples, then others, then one step of its optimiser."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(net, batch):
        optimizer.zero_grad()
        real, fake = net.train()(batch[0]), net(torch.randn_like(batch[0]))
        (F.softplus(-real[:, 0]) + F.softplus(fake[:, 0])).mean().backward()
        optimizer.step()

    return step


def twice_an_optimizer(model: nn.Module):
    """Two whole steps in one call."""
    step = plain(model)
    return lambda net, batch: (step(net, batch), step(net, batch))


def trained(model: nn.Module, step, size: int = 16, epochs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    for _ in range(epochs):
        for batch in batches(size):
            step(model, batch)
    return model


def sharpened(kind: str, **how):
    """A trained network that goes on with sharpness-aware steps, and the step."""
    model = net(kind)
    trained(model, plain(model), epochs=6)
    step = uphill(model, **how)
    return trained(model, step, epochs=2), step


def found(model, step, size: int = 16, **settings) -> vs.Finding | None:
    report = vs.check(model, batches(size), step=step, **settings)
    assert {run.name: run.ran for run in report.evidence}["step"], report.limits
    return next((finding for finding in report.findings if finding.code == "VS305"), None)


def net(*args, **settings) -> Net:
    torch.manual_seed(0)
    return Net(*args, **settings)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_updates_the_norms_inside_it_and_only_those(kind, reentrant):
    model = net(kind, (1,), momentum=0.3, use_reentrant=reentrant)
    finding = found(trained(model, step := plain(model)), step)
    assert finding is not None
    assert (finding.evidence["form"], finding.evidence["updates"]) == ("recomputed", 2)
    assert [site.id.module for site in finding.sites] == ["blocks.1.norm"]
    assert finding.confidence == "certain"
    assert finding.evidence["effective_momentum"] == pytest.approx(1 - 0.7**2, abs=1e-6)
    remedy = next(one for one in finding.cures if one.code == "set-momentum")
    assert 1 - (1 - remedy.options["momentum"]) ** 2 == pytest.approx(0.3, abs=1e-6)
    if kind != "images":  # eight pixels and more of each sample let the statistics settle
        assert finding.severity in ("warning", "error")
        assert finding.evidence["mean_error"] > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_without_recomputation_or_with_many_samples_it_is_let_pass(kind):
    model = net(kind, momentum=0.3)
    assert found(trained(model, step := plain(model)), step) is None
    model = net(kind, (0, 1))
    finding = found(trained(model, step := plain(model), size=64), step, size=64)
    assert finding is None or finding.severity == "advice"


@pytest.mark.parametrize("by_hand", [False, True], ids=["optimizer", "by hand"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_pass_at_other_weights_is_told_from_the_steps_own(kind, by_hand):
    finding = found(*sharpened(kind, by_hand=by_hand))
    assert finding is not None
    assert (finding.evidence["form"], finding.evidence["updates"]) == ("perturbed", 2)
    assert {site.id.module for site in finding.sites} == {"blocks.0.norm", "blocks.1.norm"}
    assert finding.severity in ("warning", "error")
    assert finding.cures[0].code == "skip-update"


@pytest.mark.parametrize("kind", ["vectors", "images", "by hand"])
def test_a_second_pass_that_leaves_the_statistics_alone_is_let_pass(kind):
    assert found(*sharpened(kind, quiet=True)) is None


def test_a_look_that_is_no_further_than_a_step_is_advice():
    finding = found(*sharpened("vectors", rho=0.01))
    assert finding is not None
    assert finding.severity == "advice"


@pytest.mark.parametrize(("pieces", "severity"), [(8, "error"), (4, "warning")])
def test_accumulation_is_judged_by_what_a_norm_sees(pieces, severity):
    model = net("vectors")
    finding = found(trained(model, step := in_pieces(model, pieces), size=48), step, size=48)
    assert finding is not None
    assert (finding.evidence["form"], finding.severity) == ("pieces", severity)
    assert finding.evidence["values_per_channel"] == 48 / pieces
    assert finding.evidence["updates"] == pieces


def test_accumulation_over_large_pieces_is_let_pass():
    model = net("vectors")
    assert found(trained(model, step := in_pieces(model, 3), size=96), step, size=96) is None


@pytest.mark.parametrize("make", [plain, adversarial, twice_an_optimizer])
@pytest.mark.parametrize("kind", KINDS)
def test_other_steps_are_let_pass(make, kind):
    model = net(kind)
    assert found(trained(model, step := make(model)), step, select=["VS305"]) is None


def test_it_comes_before_what_follows_from_it():
    model = net("vectors", (0, 1), momentum=0.45)
    step = plain(model)
    report = vs.check(trained(model, step), batches(), step=step)
    codes = [finding.code for finding in report.findings if finding.severity != "advice"]
    assert codes[0] == "VS305"
    assert "VS202" not in codes
