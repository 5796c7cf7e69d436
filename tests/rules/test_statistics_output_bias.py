"""VS208: noise that moves the mean of the outputs."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import varshift as vs
from varshift.probe import NoiseBias


class Length(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=1, keepdim=True)


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(1, keepdim=True)


class Unscaled(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.rate) if self.training else x


def body(noise: nn.Module, *end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), noise, *end)


def length(rate: float) -> nn.Module:
    return body(nn.Dropout(rate), nn.Linear(48, 12), Length())


def largest(rate: float) -> nn.Module:
    return body(nn.Dropout(rate), nn.Linear(48, 24), Largest())


def unscaled(rate: float) -> nn.Module:
    return body(Unscaled(rate), nn.Linear(48, 1))


def linear(rate: float) -> nn.Module:
    return body(nn.Dropout(rate), nn.Linear(48, 1))


class Autoencoder(nn.Module):
    """Variational, with its noise off in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.code, self.outer = nn.Linear(6, 24), nn.Linear(24, 6), nn.Linear(3, 24)
        self.out = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.code(self.inner(x).relu()).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        return self.out(self.outer(code).relu()), mean, spread


def bound(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    out, mean, spread = outputs
    return F.mse_loss(out, x) * 6 - 0.5 * (1 + spread - mean**2 - spread.exp()).sum(1).mean()


def numbers(count: int = 512) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    y = 1.5 + x[:, :1] * 0.6 + 0.2 * torch.randn(count, 1, generator=generator)
    return list(zip(x.split(32), y.split(32), strict=True))


def classes() -> list[tuple[Tensor, Tensor]]:
    return [(x, (y[:, 0] > 1.5).long() + (y[:, 0] > 2).long()) for x, y in numbers()]


def trained(model: nn.Module, batches, loss=F.mse_loss, steps: int = 300) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model.eval()


def biased(report: vs.Report) -> list[vs.Finding]:
    return [one for one in report.findings if one.code == "VS208"]


@functools.cache
def at_half(build) -> nn.Module:
    torch.manual_seed(0)
    return trained(build(0.5), numbers())


@pytest.mark.parametrize("build", [length, largest, unscaled])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_curved_function_of_noise_is_named_first_whatever_the_seed(build, seed):
    batches, model = numbers(), at_half(build)
    report = vs.check(model, batches, seed=seed)
    (finding,) = biased(report)
    assert finding.severity in ("warning", "error")
    assert {one.code for one in report.findings if one.severity != "advice"} <= {"VS107", "VS208"}
    assert finding.step == "noise"
    assert finding.evidence["residual"] > 0
    assert finding.sites[0].id.module == "4"


def test_the_bias_is_that_of_many_draws_and_averaging_is_measured():
    batches, model = numbers(), at_half(length)
    (finding,) = biased(vs.check(model, batches))
    x, y = (torch.cat([batch[part][:8] for batch in batches[:8]]) for part in (0, 1))
    with torch.no_grad():
        clean = model(x)
        mean = torch.stack([model.train()(x) for _ in range(3000)]).mean(0)
    model.eval()
    error = 3 * finding.evidence["bias_error"]
    assert finding.evidence["bias"] == pytest.approx(float((mean - clean).square().mean().sqrt()), abs=error)
    assert finding.evidence["offset"] == pytest.approx(float((clean - mean).mean()), abs=error)
    assert finding.evidence["offset"] < 0
    assert "lower" in finding.message
    remedy = next(one for one in finding.cures if one.code == "average-noise")
    assert remedy.measured["before"] == pytest.approx(float(F.mse_loss(clean, y)), rel=1e-4)
    assert remedy.measured["after"] == pytest.approx(float(F.mse_loss(mean, y)), rel=0.15)


@pytest.mark.parametrize("build", [linear, lambda rate: length(0.0), lambda rate: largest(0.02)])
def test_linear_heads_and_little_noise_are_let_pass(build):
    torch.manual_seed(0)
    batches = numbers()
    assert biased(vs.check(trained(build(0.5), batches), batches)) == []


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_classes_with_dropout_are_let_pass(rate):
    torch.manual_seed(0)
    batches = classes()
    model = trained(
        body(nn.Dropout(rate), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3)), batches, F.cross_entropy
    )
    assert biased(vs.check(model, batches)) == []


def test_a_variational_autoencoder_is_let_pass():
    torch.manual_seed(0)
    batches = [(x, x) for x, _ in numbers()]
    model = trained(Autoencoder(), batches, bound)
    assert biased(vs.check(model, batches, loss=bound)) == []


def test_noise_in_front_of_a_norm_explains_the_bias():
    torch.manual_seed(0)
    batches = numbers()
    end = (nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 12), Length())
    model = trained(body(nn.Dropout(0.5), *end), batches)
    report = vs.check(model, batches)
    codes = [one.code for one in report.findings]
    assert "VS101" in codes
    assert "VS208" not in codes


def test_noise_that_stays_on_is_of_another_rule():
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    torch.manual_seed(0)
    batches = numbers()
    model = trained(body(Always(), nn.Linear(48, 12), Length()), batches)
    assert biased(vs.check(model, batches)) == []


def test_it_finds_alone_what_it_finds_among_all():
    batches, model = numbers(), at_half(length)
    (among,) = biased(vs.check(model, batches))
    (alone,) = vs.check(model, batches, select=["VS208"]).findings
    assert (alone.severity, alone.message, alone.evidence) == (among.severity, among.message, among.evidence)


def test_without_targets_the_spread_of_the_outputs_is_the_unit():
    torch.manual_seed(0)
    batches = numbers()
    model = trained(unscaled(0.6), batches)
    (finding,) = biased(vs.check(model, [x for x, _ in batches]))
    assert finding.severity == "warning"
    assert "sample to sample" in finding.message


def test_a_second_head_in_training_is_no_bias():
    """Other outputs in training than in evaluation: nothing but the noise may differ in the comparison."""

    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x.softmax(1)

    torch.manual_seed(0)
    batches = classes()
    model = trained(body(nn.Dropout(0.2), nn.Linear(48, 3), Softmax()), batches, F.cross_entropy)
    assert biased(vs.check(model, batches)) == []


def test_scores_that_grow_are_named_though_the_training_data_are_learnt_by_heart(build):
    """Of classes, with noise that is not rescaled: the loss of such data does not see it."""
    known = {
        "noise_bias": dataclasses.replace(FOUND, bias=0.6, loss_step=-0.1, fits_numbers=False),
        "measurement": build.measurement(gap=build.gap_of(noise=-0.2)),
        "eval": build.flow(mode="eval"),
    }
    nodes = [build.node(0, "weight"), build.node(1, "noise", (0,))]
    flow = build.flow([build.noise(mean_factor=0.6)], nodes=nodes)
    (finding,) = build.findings("VS208", build.evidence(train=flow, **known))
    assert finding.severity == "warning"
    assert "not rescaled" in finding.message
    masked = build.flow([build.noise(mean_factor=0.6)], nodes=[build.node(0, "input"), nodes[1]])
    assert build.findings("VS208", build.evidence(train=masked, **known)) == ()


FOUND = NoiseBias(64, 8, 16, 0.4, 0.02, -0.3, 0.02, 1.0, 1.0, 1.16, 0.16, 0.02, fits_numbers=True)


@pytest.mark.parametrize(
    ("changes", "deltas", "severity"),
    [
        ({}, {}, "error"),
        ({}, {"noise": -0.5}, "error"),  # the loss falls since noise is off, and would fall further
        ({"bias": 0.27}, {}, "warning"),
        ({"bias": 0.1}, {}, None),
        ({"bias_error": 0.2}, {}, None),
        ({"loss_step": -0.1}, {}, None),  # the loss speaks against it
        ({"fits_numbers": False}, {"noise": 0.2}, "error"),
        ({"fits_numbers": False}, {"noise": 0.07}, "warning"),
        ({"fits_numbers": False}, {"noise": -0.2}, "advice"),
        ({"fits_numbers": False, "loss_step": -0.1}, {"noise": 0.2}, None),
        ({"loss": None, "loss_step": None}, {}, "advice"),
        ({"loss": None, "loss_step": None, "bias": 0.6}, {}, "warning"),
        ({"loss": None, "loss_step": None, "bias": 0.2}, {}, None),
    ],
)
def test_what_grades_it(build, changes, deltas, severity):
    known = build.evidence(
        train=build.flow([build.noise()]),
        eval=build.flow(mode="eval"),
        noise_bias=dataclasses.replace(FOUND, **changes),
        measurement=build.measurement(gap=build.gap_of(**deltas)),
    )
    assert [one.severity for one in build.findings("VS208", known)] == ([severity] if severity else [])
