"""A report agrees with itself, with the census and with the flow, on every network that the tests know."""

from __future__ import annotations

import pytest
import torch
from fixture_networks import Fixture, all_fixtures
from state_digest import Digest, process_state
from torch import nn

import varshift as vs
from varshift.flow import capture
from varshift.integrations import declare_torchvision_operators
from varshift.model import find_norms, network_of, read_call
from varshift.rules import all_rules

CHECKED = [
    pytest.param(fixture, id=fixture.name, marks=[pytest.mark.zoo] if fixture.zoo else [])
    for fixture in all_fixtures()
]


def learned(fixture: Fixture) -> nn.Module:
    """The network with statistics of its own, as training leaves them."""
    if fixture.zoo:
        declare_torchvision_operators()
    model = fixture.network()
    model.train()
    with torch.no_grad():
        for batch in fixture.batches():
            read_call(model, batch).run(model)
    return model


@pytest.mark.parametrize("fixture", CHECKED)
def test_a_report_agrees_with_itself_and_with_what_it_is_made_of(fixture: Fixture) -> None:
    model, batches = learned(fixture), fixture.batches()
    before, process = Digest(model=model, batches=batches), process_state()
    report = vs.check(model, batches, **fixture.settings)

    # Nothing of the model, the data or the process changes.
    assert before.differences(Digest(model=model, batches=batches)) == []
    assert process_state() == process

    # Every norm that somebody sees has a row with figures, or the report says why not.
    network = network_of(model)
    flows = capture(network, batches[0])
    in_flow = {site.name for flow in (flows.train, flows.eval) if flow for site in flow.norms if site.tracked}
    census = {norm.name for norm in find_norms(network)}
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
    unseen = {finding.where for finding in report.findings if "never reached" in finding.message}
    assert not unseen & {site.name for site in flows.eval.norms} if flows.eval else True
    for finding in report.findings:
        assert all(site.id.module in dict(network.named_modules()) for site in finding.sites)

    # It is complete, it is data, and it is the same again.
    assert [run.code for run in report.rules] == [rule.code for rule in all_rules()]
    assert all(run.ran == (not run.reason) for run in (*report.rules, *report.evidence))
    assert {finding.code for finding in report.findings} <= {run.code for run in report.rules if run.ran}
    assert vs.Report.from_json(report.to_json()) == report
    assert vs.check(model, batches, **fixture.settings).to_json() == report.to_json()
