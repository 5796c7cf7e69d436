"""The bias of a max-pool's mean for each kind of noise, against simulation and its limits."""

from __future__ import annotations

import pytest
import torch

from varshift import theory


def simulated(kind: str, rate: float, window: int) -> float:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(300_000, window, generator=generator).abs()
    if kind == "dropout":
        factors = (torch.rand(values.shape, generator=generator) > rate) / (1 - rate)
    elif kind == "uniform":
        factors = 1 + rate * (2 * torch.rand(values.shape, generator=generator) - 1)
    else:
        factors = 1 + rate * torch.randn(values.shape, generator=generator)
    return float((factors * values).amax(1).mean() / values.amax(1).mean())


@pytest.mark.parametrize(
    ("kind", "rate", "window"),
    [
        ("dropout", 0.5, 4),
        ("dropout", 0.1, 9),
        ("uniform", 0.5, 4),
        ("uniform", 1.0, 16),
        ("gaussian", 0.3, 4),
        ("gaussian", 1.0, 9),
    ],
)
def test_the_ratio_of_means_agrees_with_simulation(kind, rate, window):
    assert theory.noisy_max_pool_mean_ratio(kind, rate, window) == pytest.approx(
        simulated(kind, rate, window), rel=3e-3
    )


@pytest.mark.parametrize("kind", ["dropout", "uniform", "gaussian"])
@pytest.mark.parametrize(("rate", "window"), [(0.0, 9), (0.7, 1)])
def test_without_noise_or_without_a_choice_there_is_no_bias(kind, rate, window):
    assert theory.noisy_max_pool_mean_ratio(kind, rate, window) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["dropout", "uniform", "gaussian"])
def test_the_bias_grows_with_the_noise(kind):
    ratios = [theory.noisy_max_pool_mean_ratio(kind, rate, 4) for rate in (0.1, 0.3, 0.6, 0.9)]
    assert ratios[0] > 1
    assert ratios == sorted(ratios)


def test_dropout_is_the_closed_form_of_the_keep_probability():
    assert theory.noisy_max_pool_mean_ratio("dropout", 0.5, 4) == theory.max_pool_mean_ratio(0.5, 4)


@pytest.mark.parametrize(
    ("kind", "rate", "window", "named"),
    [
        ("drop_path", 0.1, 4, "kind="),
        ("uniform", 1.5, 4, "rate="),
        ("dropout", 1.0, 4, "rate="),
        ("gaussian", 0.1, 0, "window="),
    ],
)
def test_arguments_out_of_range_are_named(kind, rate, window, named):
    with pytest.raises(ValueError, match=named):
        theory.noisy_max_pool_mean_ratio(kind, rate, window)
