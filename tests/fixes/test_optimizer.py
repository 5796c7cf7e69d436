"""The optimiser is kept in step with the network."""

import copy

import pytest
import torch
from state_digest import Digest
from torch import nn

import varshift as vs
from varshift.fixes import Surgery, sync_optimizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def stepped(net, optimizer):
    for seed in range(3):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_carried_over_and_dropped(name):
    net = network()
    optimizer = stepped(net, OPTIMIZERS[name](net.parameters()))
    first, bias = net[0].weight, net[1].weight
    kept = {key: copy.deepcopy(value) for key, value in optimizer.state[first].items()}
    carried = {key: copy.deepcopy(value) for key, value in optimizer.state[bias].items()}
    watched = Digest(net=net, optimizer=optimizer)
    surgery = Surgery(net, optimizer=optimizer)
    surgery.swap(net[1], nn.GroupNorm(2, 6))
    surgery.swap(net[3], nn.Linear(6, 3, bias=False))
    changes = sync_optimizer(optimizer, surgery)
    assert {change.method for change in changes} == {"optimizer"}
    assert len([change for change in changes if not change.after]) == 1  # the bias of the last layer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in net.parameters()}
    assert set(map(id, optimizer.state)) <= {id(p) for p in parameters}
    for key, value in kept.items():
        assert torch.equal(torch.as_tensor(optimizer.state[first][key]), torch.as_tensor(value))
    for key, value in carried.items():
        assert torch.equal(torch.as_tensor(optimizer.state[net[1].weight][key]), torch.as_tensor(value))
    surgery.undo()
    assert not watched.differences(Digest(net=net, optimizer=optimizer))


def test_training_goes_on_with_the_synchronised_optimiser():
    net = network()
    optimizer = stepped(net, OPTIMIZERS["adam"](net.parameters()))
    surgery = Surgery(net, optimizer=optimizer)
    surgery.swap(net[1], nn.GroupNorm(2, 6))
    sync_optimizer(optimizer, surgery)
    before = net[1].weight.detach().clone()
    stepped(net, optimizer)
    assert not torch.equal(before, net[1].weight)


def test_new_parameters_join_a_group():
    net = network()
    optimizer = stepped(net, OPTIMIZERS["sgd"](net.parameters()))
    surgery = Surgery(net, optimizer=optimizer)
    surgery.swap(net[2], nn.PReLU())
    changes = sync_optimizer(optimizer, surgery)
    assert [str(change.site) for change in changes] == ["2:weight"]
    assert any(p is net[2].weight for p in optimizer.param_groups[0]["params"])


def decayed():
    torch.manual_seed(0)
    net = network()
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("in_place", [False, True])
def test_parameters_leave_the_weight_decay(in_place):
    net, optimizer = decayed()
    stepped(net, optimizer)
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(4)]
    watched = Digest(net=net, optimizer=optimizer)
    treat = vs.fix_ if in_place else vs.fix
    cured = treat(net, loader=batches, optimizer=optimizer, select=["VS501"], unsafe=True)
    codes = [finding.code for finding in cured.before.findings]
    assert "VS501" in codes
    groups = cured.optimizer.param_groups
    own = dict(cured.model.named_parameters())
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(own)
    assert decays[id(own["1.weight"])] == 0
    assert decays[id(own["1.bias"])] == 0
    assert (cured.optimizer is optimizer) is in_place
    cured.undo()
    assert not watched.differences(Digest(net=net, optimizer=optimizer))


def test_a_plan_leaves_the_groups_alone_where_there_is_no_optimiser():
    net, optimizer = decayed()
    plan = vs.fix(net, shape=(4,), optimizer=optimizer, cures=["exclude-from-decay"]).plan
    assert plan.edits
    repeated = vs.apply_plan(net, plan)
    assert not repeated.changes
    assert "changes the optimizer" in repeated.notes[0]
    again = vs.apply_plan(net, plan, optimizer=optimizer)
    assert {change.method for change in again.changes} == {"optimizer"}
    assert len(optimizer.param_groups) == 1


def test_what_was_added_is_forgotten_with_the_undo():
    net, optimizer = decayed()
    surgery = Surgery(net, optimizer=optimizer)
    mark = surgery.mark()
    surgery.swap(net[2], nn.PReLU())
    assert len(surgery.added) == 1
    surgery.undo_to(mark)
    assert not surgery.added


def test_a_finding_that_is_not_looked_for_again_is_not_called_gone():
    net, optimizer = decayed()
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(4)]
    report = vs.check(net, batches, optimizer=optimizer)
    assert any(finding.code == "VS501" for finding in report.findings)
    cured = vs.fix(net, report, loader=batches, cures={"swap-norm": {"to": "group_norm"}})
    assert cured.after is not None
    assert not any(finding.code == "VS501" for finding in cured.gone)


def test_averaged_weights_get_pooled_statistics():
    parts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        part = network().train()
        for _ in range(60):
            part(torch.randn(32, 4) * seed + seed)
        parts.append(part.eval())
    average = network().eval()
    with torch.no_grad():
        for own, one, two in zip(
            average.parameters(), parts[0].parameters(), parts[1].parameters(), strict=True
        ):
            own.copy_((one + two) / 2)
    cured = vs.fix(average, shape=(4,), reference=parts, unsafe=True)
    assert any(finding.code == "VS205" for finding in cured.before.findings)
    assert any(change.cure == "rebind-statistics" for change in cured.changes), cured
    means = torch.stack([part[1].running_mean for part in parts]).double()
    variances = torch.stack([part[1].running_var for part in parts]).double()
    expected = variances.mean(0) + (means - means.mean(0)).square().mean(0)
    assert torch.allclose(cured.model[1].running_mean.double(), means.mean(0), rtol=1e-6)
    assert torch.allclose(cured.model[1].running_var.double(), expected, rtol=1e-6)
    assert torch.equal(average[1].running_mean, torch.zeros(6))
