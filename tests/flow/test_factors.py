"""Noise as a factor of the signal, as a term beside it, and as a choice between signals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exported_flows import captured_by
from torch import Tensor, nn

from varshift.flow import NoiseSite


def uniform(x: Tensor, bound: float = 0.2) -> Tensor:
    return torch.empty_like(x).uniform_(-bound, bound)


def chance(x: Tensor) -> Tensor:
    return torch.rand(x.shape[0], 1, 1, 1)


def in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    return y.add_(y * uniform(y))


def beta(x: Tensor) -> Tensor:
    return torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample((x.shape[0], 1, 1, 1))


def mixture(x: Tensor, mix: Tensor, other: Tensor) -> Tensor:
    return x * mix + other * (1 - mix)


def swapped_in_place(x: Tensor) -> Tensor:
    y, mask = x.clone(), torch.rand(x.shape[0]) < 0.5
    y[mask] = x.flip(-1)[mask]
    return y


def drawn_before(x: Tensor) -> Tensor:
    noise = torch.rand(x.shape) - 0.5
    return x * 2.0 + noise * x


# what it is, its kind, its rate
FACTORS: dict[str, tuple[Callable[[Tensor], Tensor], str, float | None]] = {
    "uout": (lambda x: x + x * uniform(x), "uniform", 0.2),
    "uout reversed": (lambda x: uniform(x) * x + x, "uniform", 0.2),
    "uout of a rand": (lambda x: x + x * (2 * torch.rand_like(x) - 1) * 0.2, "uniform", 0.2),
    "uout per channel": (lambda x: x + x * uniform(x[:, :, :1, :1]), "uniform", 0.2),
    "one plus r": (lambda x: x * (1 + uniform(x)), "uniform", 0.2),
    "minus": (lambda x: x - x * uniform(x), "uniform", 0.2),
    "addcmul": (lambda x: torch.addcmul(x, x, uniform(x), value=0.5), "uniform", 0.1),
    "alpha": (lambda x: torch.add(x, x * uniform(x), alpha=0.5), "uniform", 0.1),
    "detached": (lambda x: x + x.detach() * uniform(x), "uniform", 0.2),
    "in place": (in_place, "uniform", 0.2),
    "one-sided": (lambda x: x + x * torch.rand_like(x), "uniform", 1 / 3),
    "drawn before": (drawn_before, "uniform", 0.25),
    "gaussian": (lambda x: x + x * torch.randn_like(x) * 0.3, "gaussian", 0.3),
    "gaussian, scaled first": (lambda x: x + 0.3 * torch.randn_like(x) * x, "gaussian", 0.3),
    "gaussian, scaled signal": (lambda x: x + x * 0.3 * torch.randn(x.shape), "gaussian", 0.3),
    "gaussian factor": (lambda x: x.mul(1 + 0.3 * torch.randn(x.shape)), "gaussian", 0.3),
    "gaussian around two": (lambda x: x * torch.empty_like(x).normal_(2.0, 0.5), "gaussian", 0.25),
    "gaussian of mean zero": (lambda x: x * torch.randn_like(x), "gaussian", None),
    "quotient": (lambda x: x / (1 + uniform(x)), "other", None),
}
TERMS: dict[str, tuple[Callable[[Tensor], Tensor], str, float | None]] = {
    "gaussian": (lambda x: x + 0.3 * torch.randn_like(x), "gaussian", 0.3),
    "alpha": (lambda x: x.add(torch.randn_like(x), alpha=0.3), "gaussian", 0.3),
    "minus": (lambda x: x - uniform(x), "uniform", 0.2),
    "blended": (lambda x: torch.lerp(x, torch.randn_like(x), 0.25), "gaussian", 0.25),
    "other signal": (lambda x: x + x.flip(1) * uniform(x), "uniform", None),
    "other signal, addcmul": (lambda x: torch.addcmul(x, x.flip(1), uniform(x)), "uniform", None),
    "by its own spread": (lambda x: x + 0.1 * x.std() * torch.randn_like(x), "gaussian", None),
    "concatenated": (lambda x: torch.cat([x[:, :4], torch.randn_like(x[:, :4])], 1), "gaussian", 1.0),
}
CHOICES: dict[str, tuple[Callable[[Tensor], Tensor], str, float | None]] = {
    "flip": (lambda x: torch.where(chance(x) < 0.5, x.flip(-1), x), "sampling", None),
    "elementwise": (lambda x: torch.where(torch.rand_like(x) < 0.5, x.flip(1), x), "sampling", None),
    "lerp": (lambda x: torch.lerp(x, x.flip(0), beta(x)), "sampling", None),
    "mixup": (lambda x: mixture(x, beta(x), x.flip(0)), "sampling", None),
    "shake-shake": (lambda x: mixture(x.relu(), chance(x), x.tanh()), "sampling", None),
    "zoneout": (lambda x: mixture(x, (torch.rand_like(x) < 0.9).to(x.dtype), x.flip(1)), "sampling", None),
    "minus": (lambda x: (lambda m: m * x - (m - 1) * x.flip(1))(chance(x).round()), "sampling", None),
    "in place": (swapped_in_place, "sampling", None),
    "token": (lambda x: torch.where(torch.rand_like(x) < 0.1, 1.5, x), "other", 0.1),
    "minus infinity": (lambda x: x.masked_fill(torch.rand_like(x) < 0.1, -1e4), "other", 0.1),
    "salt": (lambda x: torch.where(torch.rand_like(x) < 0.1, torch.rand_like(x), x), "other", 0.1),
    "zeros": (lambda x: torch.where(chance(x) < 0.1, torch.zeros_like(x), x / 0.9), "drop_path", 0.1),
    "times zero": (lambda x: torch.where(torch.rand_like(x) < 0.1, x * 0.0, x), "dropout", 0.1),
    "lerp to zero": (
        lambda x: torch.lerp(x, torch.zeros(()), (torch.rand_like(x) < 0.1).to(x.dtype)),
        "dropout",
        0.1,
    ),
    "subset": (lambda x: x[:, torch.randperm(8) < 4].repeat(1, 2, 1, 1), "permutation", None),
}


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Battery(nn.Module):
    """Each function in front of a norm of its own."""

    def __init__(self, table: dict[str, tuple[Callable[[Tensor], Tensor], str, float | None]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(function) for function, _, _ in table.values())
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in table)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [norm(layer(x)) for layer, norm in zip(self.layers, self.norms, strict=True)]


def sites_of(table, method) -> dict[str, tuple[NoiseSite, ...]]:
    flow = captured_by(method, Battery(table), torch.rand(4, 8, 6, 6)).train
    assert flow is not None
    return {
        name: tuple(site for site in flow.noises if site.name == f"layers.{i}")
        for i, name in enumerate(table)
    }


@pytest.mark.parametrize("additive", [False, True], ids=["factors", "terms"])
@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_factors_and_terms(method, additive) -> None:
    table = TERMS if additive else FACTORS
    for name, sites in sites_of(table, method).items():
        (site,) = sites
        _, kind, rate = table[name]
        assert (name, site.kind, site.additive, site.path) == (name, kind, additive, "direct")
        assert (site.rate is None) == (rate is None), name
        if rate is not None:
            assert site.rate == pytest.approx(rate, rel=1e-5), name


@pytest.mark.parametrize("method", ["recorded", "exported"])
def test_choices_are_no_drops(method) -> None:
    choices = dict(CHOICES)
    if method == "exported":
        choices = {n: c for n, c in choices.items() if n not in ("in place", "subset")}
    for name, sites in sites_of(choices, method).items():
        assert len(sites) == 1, (name, sites)
        (site,) = sites
        _, kind, rate = choices[name]
        assert (name, site.kind, site.rate, site.path) == (name, kind, rate, "direct")


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_learned_filling_is_no_drop(captured, method) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.norm = nn.Parameter(torch.zeros(8)), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.rand(x.shape[0], 1) < 0.4
            return self.norm(torch.where(mask, self.token, x))

    (site,) = captured(Masked(), 6, 8, method=method).train.noises
    assert (site.kind, site.rate) == ("other", 0.4)


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_one_mask_on_both_summands_is_two_drops(captured, method) -> None:
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            mask = F.dropout(torch.ones(8), 0.4)
            return self.first(x) * mask + self.second(x) * mask

    sites = captured(Locked(), 6, 8, method=method).train.noises
    assert [(site.kind, site.rate) for site in sites] == [("dropout", 0.4)] * 2


@pytest.mark.parametrize("method", ["exported", "recorded"])
def test_learned_scale_of_noise_counts_before_it_is_learned(captured, method) -> None:
    class Injection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.zeros(8, 1, 1)), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.scale * torch.randn(x.shape[0], 1, *x.shape[2:]))

    (site,) = captured(Injection(), 2, 8, 3, 3, method=method).train.noises
    assert (site.kind, site.additive, site.nearest) == ("gaussian", True, "norm")
