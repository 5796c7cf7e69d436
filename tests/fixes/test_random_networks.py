"""`fix` on random networks: it never raises, leaves healthy ones alone, and ends the shift that it finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from random_networks import Plan, batches, learnt, network_of, plans, sound_plans
from torch import nn

import varshift as vs
from varshift.flow import capture
from varshift.theory import fold

LOADER = batches()
EXAMPLE = LOADER[0]
few = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=[
        Phase.generate
    ],  # a failure is a network of a few lines: making it smaller costs more than it tells
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the source of the networks lies; one thread, for they are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("networks")
    torch.set_num_threads(threads)


def _values(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _shift(report: vs.Report) -> float:
    """The largest shift of a norm."""
    return max((fold(row.ratio) for row in report.layers if row.ratio), default=1.0)


def _of_noise(report: vs.Report) -> float:
    """The largest shift of a norm as far as fresh statistics show it: the rest is the error of an average."""
    figures = [row.measured for row in report.layers if row.measured is not None]
    pairs = [(row.ratio, row.fresh_ratio) for row in figures if row.ratio and row.fresh_ratio]
    return max((min(fold(ratio), fold(fresh)) for ratio, fresh in pairs), default=1.0)


def _noises(network: nn.Module) -> list[tuple[str, float | None, int]]:
    flow = capture(network, EXAMPLE).train
    assert flow is not None
    return [(str(site.id), site.rate, site.node) for site in flow.noises]


@few
@given(plan=plans)
def test_a_safe_fix_ends_the_shift(folder: Path, plan: Plan) -> None:
    network = learnt(network_of(plan, folder))
    before = _values(network)
    cured = vs.fix(network, loader=LOADER)
    assert _equal(_values(network), before)
    assert cured.before is not None
    found = {finding.code for finding in cured.before.findings if finding.severity != "advice"}
    if found & {"VS101", "VS102", "VS202", "VS207"}:
        assert cured.changes
        assert cured.after is not None
        assert _shift(cured.after) < 1.05
        assert not found & {"VS101", "VS102", "VS202", "VS207"} & {one.finding for one in cured.failures}
    else:
        assert _of_noise(cured.before) < 1.1


@few
@given(plan=plans)
def test_a_plan_gives_the_same_network_again(folder: Path, plan: Plan) -> None:
    network = learnt(network_of(plan, folder))
    cured = vs.fix(network, loader=LOADER, unsafe=True)
    repeated = vs.apply_plan(network_of(plan, folder), cured.plan.to_json()).model
    assert list(repeated.state_dict()) == list(cured.model.state_dict())
    repeated.load_state_dict(cured.model.state_dict())
    assert _noises(repeated) == _noises(cured.model)
    with torch.no_grad():
        assert torch.equal(repeated.eval()(EXAMPLE), cured.model.eval()(EXAMPLE))


@few
@given(plan=sound_plans)
def test_a_healthy_network_is_left_alone(folder: Path, plan: Plan) -> None:
    network = learnt(network_of(plan, folder))
    cured = vs.fix(network, loader=LOADER)
    assert cured.changes == ()
    assert cured.ok
    assert _equal(_values(cured.model), _values(network))
    assert _noises(cured.model) == _noises(network)


@few
@given(plan=plans)
def test_noise_is_removed_wherever_it_is(folder: Path, plan: Plan) -> None:
    network = learnt(network_of(plan, folder))
    cured = vs.fix(network, loader=LOADER, cures=["remove-noise"], recheck=False)
    assert cured.ok or not _noises(network), cured.failures
    assert _noises(cured.model) == []
