"""The engine: copies, changes in place, undo, plans, refusals."""

import inspect

import pytest
import torch
from state_digest import Digest
from torch import nn

import varshift as vs


def values(network):
    return [(name, tensor.clone()) for name, tensor in network.state_dict().items()]


def equal(first, second):
    names = [name for name, _ in first] == [name for name, _ in second]
    return names and all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_fix_cures_a_copy_and_leaves_the_network_alone(sick):
    network, optimizer, loader = sick
    before = Digest(network=network, optimizer=optimizer, loader=loader)
    cured = vs.fix(network, loader=loader, optimizer=optimizer)
    assert not before.differences(Digest(network=network, optimizer=optimizer, loader=loader))
    assert cured.ok, cured
    assert cured.gone
    assert cured.changes
    assert type(cured.model) is type(network)
    assert cured.model is not network
    assert {change.method for change in cured.changes} == {"statistics"}
    assert [finding.code for finding in cured.before.findings if finding.severity != "advice"]
    assert not [finding for finding in cured.after.findings if finding.severity != "advice"]


def test_fix_leaves_a_healthy_network_as_it_is(healthy):
    network, loader = healthy
    cured = vs.fix(network, loader=loader, unsafe=True)
    assert cured.ok
    assert not cured.changes
    assert not cured.plan.edits
    assert equal(values(cured.model), values(network))
    assert "no change" in str(cured)


def test_fix_in_place_and_undo_are_exact(sick):
    network, optimizer, loader = sick
    before, weights = Digest(network=network, optimizer=optimizer), values(network)
    cured = vs.fix_(network, loader=loader, optimizer=optimizer)
    assert cured.model is network
    assert cured.optimizer is optimizer
    assert not equal(weights, values(network))
    cured.undo()
    assert not before.differences(Digest(network=network, optimizer=optimizer))
    cured.undo()  # a second time does nothing
    assert not before.differences(Digest(network=network, optimizer=optimizer))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own modules
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_is_wrapped_is_refused_with_the_remedy(wrap):
    with pytest.raises(vs.ModelError, match="fix first, wrap after"):
        vs.fix(wrap(nn.Linear(2, 2)), shape=(2,))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own modules
def test_a_compiled_module_inside_is_refused():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    network[0].compile()
    with pytest.raises(vs.ModelError, match="compiled"):
        vs.fix(network, shape=(2,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cures": ["cure-all"]}, "no cure that can be carried out"),
        ({"cures": "recalibrate"}, "must be a list"),
        ({"cures": {"recalibrate": {"speed": 3}}}, "no option of the cure 'recalibrate'"),
        ({"cures": [3]}, "expected codes of cures"),
        ({"select": ["VS999"]}, "VS999"),
        ({"report": "report.json"}, "pass what varshift.check returned"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(vs.VarshiftError, match=message):
        vs.fix(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), shape=(2,), **arguments)


def test_a_plan_survives_its_file_and_refuses_another_one(sick, tmp_path):
    network, _, loader = sick
    plan = vs.fix(network, loader=loader).plan
    assert plan.edits
    path = plan.save(tmp_path / "plan.json")
    assert vs.Plan.from_json(path) == plan
    with pytest.raises(vs.VarshiftError, match="no plan of this version"):
        vs.Plan.from_json('{"schema": "varshift.report/2"}')
    with pytest.raises(vs.VarshiftError, match="no edit of this version"):
        vs.Plan.from_json('{"schema": "varshift.plan/1", "edits": [{"op": "later"}]}')


def test_both_doors_take_the_same_arguments():
    assert inspect.signature(vs.fix_) == inspect.signature(vs.fix)
    with pytest.raises(TypeError, match="lader"):
        vs.fix_(nn.Linear(2, 2), lader=[])
