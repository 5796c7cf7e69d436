"""A report agrees with itself, with the census and with the flow, on every network that the tests know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fixture_networks import Fixture, all_fixtures
from torch import Tensor, nn

import varshift as vs
from varshift.flow import capture
from varshift.integrations import declare_torchvision_operators
from varshift.model import find_norms
from varshift.rules import all_rules

BY_NAME = "the measurement knows norms by the names of their buffers"
# Not yet as it should be: each line goes with the change that mends it.
NOT_YET = {
    "flow/Counting": "a check runs the network itself, whose counters move",
    "flow/Norms": BY_NAME,
    "probe/Adapter": "a check runs the network itself, which merges weights and splits them again",
    "hand-written/averages": BY_NAME,
    "hand-written/parameters": "a check runs the network itself, whose statistics are parameters",
    "hand-written/attributes": "a check runs the network itself, whose statistics are attributes",
}


def marks(fixture: Fixture) -> list[pytest.MarkDecorator]:
    reason = NOT_YET.get(fixture.name)
    later = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
    return [pytest.mark.zoo, *later] if fixture.zoo else later


CHECKED = [pytest.param(fixture, id=fixture.name, marks=marks(fixture)) for fixture in all_fixtures()]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learned(fixture: Fixture) -> nn.Module:
    """The network with statistics of its own, as training leaves them."""
    if fixture.zoo:
        declare_torchvision_operators()
    model = fixture.network()
    model.train()
    with torch.no_grad():
        for batch in fixture.batches():
            run(model, batch)
    return model


def run(model: nn.Module, batch: Any) -> None:
    from varshift.model import default_forward

    default_forward(model, batch)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a network that a check must not change: values, flags, attributes, hooks, identities."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                for own, tensor in value.items():
                    state[f"{name}.{key}.{own}"] = (id(tensor), copy.deepcopy(tensor))
            elif key == "_modules" or "hook" in key:
                state[f"{name}.{key}"] = {own: id(item) for own, item in value.items()} if value else None
            else:
                state[f"{name}.{key}"] = copy.deepcopy(value)
    return state


def equal_values(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | ((one != one) & (other != other))  # what was not a number may stay so


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool(equal_values(one, other).all())
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (bool, int, float, str, type(None))):
        return one == other
    return type(one) is type(other)


@pytest.mark.parametrize("fixture", CHECKED)
def test_a_report_agrees_with_itself_and_with_what_it_is_made_of(fixture: Fixture) -> None:
    model, batches = learned(fixture), fixture.batches()
    before, random_state = state_of(model), torch.get_rng_state()
    report = vs.check(model, batches, **fixture.settings)

    # Nothing of the model, the data or the process changes.
    after = state_of(model)
    assert after.keys() == before.keys()
    assert [key for key in before if not same(before[key], after[key])] == []
    assert same(batches, fixture.batches())
    assert torch.equal(torch.get_rng_state(), random_state)

    # Every norm that somebody sees has a row with figures, or the report says why not.
    flows = capture(model, batches[0])
    in_flow = {site.name for flow in (flows.train, flows.eval) if flow for site in flow.norms if site.tracked}
    census = {norm.name for norm in find_norms(model)}
    rows = {row.name: row for row in report.layers}
    assert len(rows) == len(report.layers)
    limits = "\n".join(report.limits)
    for name in census | in_flow:
        named = f"'{name}'" in limits
        assert name in rows or named, f"{name!r} has no row"
        if name in rows and name in in_flow:
            assert rows[name].real_var is not None or named, f"{name!r} was not measured"
        if name in census - in_flow:
            assert named or not rows[name].reached, f"{name!r} was measured and is not in the flow"
    assert set(rows) <= census | in_flow

    # Sites have names of their own, and what is said of them is said of sites that there are.
    for ids in ([row.id for row in report.noises], [row.id for row in report.layers]):
        assert len(set(ids)) == len(ids)
    for row in report.layers:
        upstream = report.noises_before(row)
        assert row.noise_count == len(upstream)
        assert row.noise == (upstream[-1].id if upstream else None)
    reached = {row.id: {layer.name for layer in report.reached_by(row)} for row in report.noises}
    assert (
        reached == {site.id: set(site.reaches) for site in flows.train.noises} if flows.train else not reached
    )
    for finding in report.findings:
        assert all(site.id.module in dict(model.named_modules()) for site in finding.sites)

    # It is complete, it is data, and it is the same again.
    assert [run.code for run in report.rules] == [rule.code for rule in all_rules()]
    assert all(run.ran == (not run.reason) for run in (*report.rules, *report.evidence))
    assert {finding.code for finding in report.findings} <= {run.code for run in report.rules if run.ran}
    assert vs.Report.from_json(report.to_json()) == report
    assert vs.check(model, batches, **fixture.settings).to_json() == report.to_json()
