"""The mean of the outputs over the noise against the outputs without it, on a few samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.evidence import Gathering, Subject
from varshift.probe import NoiseBias


class Net(nn.Module):
    """Dropout in front of a square, or whatever comes last."""

    def __init__(self, end=torch.square, rate: float = 0.5, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.noise, self.outer = nn.Linear(5, 32), nn.Dropout(rate), nn.Linear(32, 2)
        with torch.no_grad():
            self.outer.weight.mul_(3)
        self.norm, self.end = nn.BatchNorm1d(32) if norm else nn.Identity(), end

    def forward(self, x: Tensor):
        return self.end(self.outer(self.noise(self.norm(self.inner(x)).relu())))


def batches(count: int = 8, size: int = 16, targets: bool = True):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 5, generator=generator)
    y = 0.5 + torch.randn(count * size, 2, generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True)) if targets else list(x.split(size))


def found(model: nn.Module, data=None, **settings) -> NoiseBias | str:
    """The measurement, or why there is none."""
    gathering = Gathering(Subject(model, loader=data or batches(), **settings))
    gathering.gather(["noise_bias"])
    (run,) = [one for one in gathering.runs() if one.name == "noise_bias"]
    return gathering.evidence.noise_bias or run.reason


def exact(model: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the noise of the square of a sum, and the square without noise."""
    with torch.no_grad():
        h = model.inner(x).relu()
        clean = model.outer(h)
        # Var of W d(h) for dropout at rate q: q / (1 - q) sum W^2 h^2.
        variance = (model.outer.weight.square() @ h.square().T).T
        return clean.square() + variance, clean.square()


def test_the_bias_of_a_square_is_the_variance_of_what_is_squared():
    model, data = Net(), batches()
    bias = found(model, data)
    assert isinstance(bias, NoiseBias)
    x, y = (torch.cat([batch[part][:8] for batch in data]) for part in (0, 1))
    mean, clean = exact(model, x)
    assert (bias.samples, bias.groups, bias.draws) == (64, 8, 16)
    assert bias.bias == pytest.approx(float((mean - clean).square().mean().sqrt()), abs=3 * bias.bias_error)
    assert bias.offset == pytest.approx(float((clean - mean).mean()), abs=4 * bias.offset_error)
    assert bias.residual == pytest.approx(float((y - mean).square().mean().sqrt()), rel=0.05)
    assert bias.spread == pytest.approx(float(clean.var(0, correction=0).mean().sqrt()), rel=1e-5)
    assert bias.loss == pytest.approx(float(F.mse_loss(clean, y)), rel=1e-5)
    expected = float(F.mse_loss(clean, y) - F.mse_loss(mean, y))
    assert bias.loss_step == pytest.approx(expected, abs=max(0.02, 0.3 * abs(expected)))
    assert bias.fits_numbers


def test_a_linear_end_has_no_bias_whatever_the_noise():
    bias = found(Net(nn.Identity()))
    assert isinstance(bias, NoiseBias)
    assert bias.bias <= 3 * (bias.bias_error or 0.0)
    assert abs(bias.offset) <= 4 * bias.offset_error


def test_norms_use_their_running_statistics_so_that_batch_mates_do_not_matter():
    model = Net(nn.Identity(), rate=0.01, norm=True)
    model.norm.running_mean += 1
    bias = found(model.eval())
    assert isinstance(bias, NoiseBias)
    with torch.no_grad():
        expected = torch.cat([model(x[:8]) for x, _ in batches()])
    assert bias.spread == pytest.approx(float(expected.var(0, correction=0).mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize(
    "end",
    [
        lambda h: (h.square(), h.argmax(1)),
        lambda h: {"out": h.square(), "other": [h, h.exp()]},
        lambda h: h.square().half().float(),
    ],
)
def test_outputs_of_any_structure_are_averaged(end):
    bias = found(Net(end))
    assert isinstance(bias, NoiseBias)
    assert bias.bias == pytest.approx(found(Net()).bias, rel=0.01)


def test_a_loss_of_the_user_sees_the_averaged_outputs_as_they_came():
    def loss(outputs, targets):
        assert outputs[1].dtype == torch.int64
        return F.l1_loss(outputs[0], targets)

    bias = found(Net(lambda h: (h.square(), h.argmax(1))), loss=loss)
    assert isinstance(bias, NoiseBias)
    assert bias.loss_step is not None


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (Net(rate=0.0), {}, "no noise acts in training"),
        (Net(), {"forward": lambda model, batch: model(batch[0]).mean()}, "no output, or its loss only"),
        (Net(lambda h: h[h[:, 0] > 0]), {"data": batches(targets=False)}, "shape of the outputs depends"),
    ],
)
def test_what_cannot_be_averaged_is_said(model, settings, reason):
    assert reason in found(model, **settings)


def test_without_targets_there_is_a_bias_and_no_loss():
    bias = found(Net(), batches(targets=False))
    assert isinstance(bias, NoiseBias)
    assert bias.loss is bias.loss_step is bias.residual is None
    assert bias.bias > 0


def test_nothing_is_changed():
    model, data = Net(norm=True), batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, inputs = torch.get_rng_state(), [x.clone() for x, _ in data]
    model.inner.train()
    found(model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, kept) for (x, _), kept in zip(data, inputs, strict=True))
