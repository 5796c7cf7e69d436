"""State other than statistics that an average of networks does not keep: singular vectors and ranges."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm

import varshift as vs

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": old_spectral_norm}


def network(norm, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(norm(nn.Linear(6, 12)), nn.BatchNorm1d(12), nn.ReLU(), norm(nn.Linear(12, 3)))
    with torch.no_grad():
        for _ in range(60):
            net(torch.randn(16, 6))
    return net.eval()


def average(nets: list[nn.Module]) -> nn.Module:
    result = copy.deepcopy(nets[0])
    states = [net.state_dict() for net in nets]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    result.load_state_dict(mean)
    return result


def found(report, form):
    return [one for one in report.findings if one.code == "VS205" and one.evidence["form"] == form]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_averaged_singular_vectors_are_named(norm):
    nets = [network(NORMS[norm], seed) for seed in range(3)]
    merged = average(nets)
    (finding,) = found(vs.check(merged, reference=nets), "spectral-vectors")
    assert {site.id.module for site in finding.sites} <= {"0", "3"}
    # The weight that evaluation uses has a largest singular value of 1 where the vectors fit.
    with torch.no_grad():
        merged(torch.zeros(1, 6))
    modules = [merged.get_submodule(site.id.module) for site in finding.sites]
    largest = max(float(torch.linalg.matrix_norm(module.weight.detach(), 2)) for module in modules)
    assert finding.evidence["ratio"] == pytest.approx(largest, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_singular_vectors_that_fit_are_silent(norm):
    net = network(NORMS[norm], 0)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    assert not found(vs.check(net, reference=other), "spectral-vectors")


def observed(scale: float) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import MinMaxObserver

        observer = MinMaxObserver()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), observer, nn.BatchNorm1d(6))
    with torch.no_grad():
        net[0].weight.add_(0.1 * torch.randn(6, 4, generator=torch.Generator().manual_seed(int(scale * 7))))
        net(scale * torch.randn(64, 4))
    return net


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_averaged_ranges_are_named_and_ranges_of_all_are_not():
    nets = [observed(1.0), observed(4.0)]
    merged = average(nets)
    (finding,) = found(vs.check(merged, reference=nets), "observed-ranges")
    ranges = [torch.stack([net[1].min_val, net[1].max_val]) for net in nets]
    widest = max(float(r[1]) for r in ranges) - min(float(r[0]) for r in ranges)
    mean = torch.stack(ranges).mean(0)
    assert finding.evidence["ratio"] == pytest.approx(widest / float(mean[1] - mean[0]), rel=1e-5)
    merged[1].min_val.copy_(torch.stack([r[0] for r in ranges]).amin())
    merged[1].max_val.copy_(torch.stack([r[1] for r in ranges]).amax())
    assert not found(vs.check(merged, reference=nets), "observed-ranges")
