"""Another norm in the place of a norm."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from treatment import copies, patient_of, saved, treated

import varshift as vs
from varshift.fixes import LAYERS, Refused, Surgery, group_count, plan_cure
from varshift.rules import Cure

SAME = ("batch_renorm", "frozen", "sync")
OTHER = ("group_norm", "layer_norm", "filter_response_norm")


class Net(nn.Module):
    """A norm with a ReLU of its own and a second name, and one whose ReLU is shared with a sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.relu1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.norm2, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.second_name = self.norm1
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.relu1(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(x)))
        return self.head(self.relu(x + y).mean((2, 3)))


class HandNorm(nn.Module):
    """A batch norm written by hand, with names of its own."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("ema_mean", torch.zeros(channels))
        self.register_buffer("ema_var", torch.ones(channels))
        self.eps = 1e-3

    def forward(self, x):
        mean, var = self.ema_mean, self.ema_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.ema_mean.lerp_(mean, 0.1)
                self.ema_var.lerp_(var, 0.1)
        x = (x - mean[:, None, None]) / (var + self.eps).sqrt()[:, None, None]
        return x * self.gamma[:, None, None] + self.beta[:, None, None]


class NormAndMore(HandNorm):
    """A norm that does something else, too."""

    def forward(self, x):
        return super().forward(x).relu()


class NormAndChildren(nn.BatchNorm2d):
    """A batch norm with a dropout and an activation inside."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.2), nn.ReLU(inplace=True)

    def forward(self, x):
        x = nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return self.act(self.drop(x))


def learnt(network, *shape, batches=20):
    """A network whose norms have seen data, in evaluation mode."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    network.train()
    with torch.no_grad():
        for _ in range(batches):
            network(torch.randn(16, *shape) * 2 + 1)
    return network.eval()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return learnt(Net(), 3, 10, 10)


x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("to", SAME)
def test_layers_with_running_statistics_evaluate_as_the_batch_norm_did(network, to):
    before, parameters = network(x), dict(network.named_parameters())
    keys, running = set(network.state_dict()), network.norm1.running_mean
    surgery, changes = treated(network, x, "swap-norm", to=to)
    torch.testing.assert_close(network(x), before, atol=1e-5, rtol=0)
    assert len(changes) == 2
    assert type(network.norm1) is not nn.BatchNorm2d
    assert network.second_name is network.norm1  # every name of a shared norm
    assert network.norm1.running_mean is running
    assert set(network.state_dict()) == keys
    assert all(value is parameters[name] for name, value in network.named_parameters())
    assert not surgery.replaced  # the optimiser has nothing to change


@pytest.mark.parametrize("to", OTHER)
def test_norms_of_single_samples_keep_the_parameters_and_forget_the_statistics(network, to):
    parameters = dict(network.named_parameters())
    treated(network, x, "swap-norm", to=to)
    assert network.norm1.weight is parameters["norm1.weight"]
    assert network.norm2.bias is parameters["norm2.bias"]
    assert not dict(network.named_buffers())
    alone = torch.cat([network(one[None]) for one in x])
    torch.testing.assert_close(alone, network.train()(x), atol=1e-5, rtol=0)  # nobody sees batch mates


@pytest.mark.parametrize("to", [*SAME, *OTHER])
def test_hooks_modes_and_flags_are_kept_and_undo_gives_everything_back(network, to):
    calls = []
    network.norm1.register_forward_hook(lambda *_: calls.append(1))
    network.norm2.weight.requires_grad_(False)
    network.norm2.train()
    before, modules = {k: v.clone() for k, v in network.state_dict().items()}, dict(network.named_modules())
    surgery, _ = treated(network, x, "swap-norm", to=to)
    assert network.norm2.training
    assert not network.norm1.training
    assert not network.norm2.weight.requires_grad
    calls.clear()
    network(x)
    assert calls == [1]
    surgery.undo()
    assert dict(network.named_modules()) == modules
    if to not in SAME:  # those share the statistics, which the pass above updated
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("to", [*SAME, *OTHER])
def test_a_cured_network_is_copied_saved_and_loaded(network, to):
    treated(network, x, "swap-norm", to=to)
    twin = copy.deepcopy(network)
    twin.load_state_dict(network.state_dict())
    for other in (twin, saved(network)):
        assert torch.equal(other(x), network(x))
        assert other.second_name is other.norm1


@pytest.mark.parametrize("to", [*SAME, *OTHER, "kalman"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_are_kept_and_norms_without_parameters_stay_without(to, dtype):
    plain = nn.BatchNorm2d(8, affine=False, momentum=None)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), plain, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    net = net.to(dtype).eval()
    inputs = x.to(dtype).contiguous(memory_format=torch.channels_last)
    before = net(inputs)
    treated(net, inputs, "swap-norm", to=to)
    tensors = (*net.parameters(), *net.buffers())
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}
    assert net[1].weight is None
    assert net(inputs).dtype == dtype
    if to not in OTHER:
        torch.testing.assert_close(net(inputs), before)


def test_a_threshold_takes_the_place_of_a_relu_that_only_its_norm_feeds(network):
    treated(network, x, "swap-norm", to="filter_response_norm")
    assert [type(one).__name__ for one in (network.norm1, network.relu1)] == [
        "FilterResponseNormTLU2d",
        "Identity",
    ]
    # This ReLU is run on the sum, too: it stays, and the norm has no threshold.
    assert [type(one).__name__ for one in (network.norm2, network.relu)] == ["FilterResponseNorm2d", "ReLU"]
    assert network.norm1(x.new_full((1, 8, 4, 4), -1.0)).min() >= 0


def test_thresholds_can_be_left_out(network):
    treated(network, x, "swap-norm", to="filter_response_norm", tlu=False)
    assert type(network.norm1).__name__ == "FilterResponseNorm2d"
    assert type(network.relu1) is nn.ReLU


def test_instance_norm_needs_more_than_one_position(network):
    treated(network, x, "swap-norm", to="instance_norm")
    assert isinstance(network.norm1, nn.InstanceNorm2d)
    flat = learnt(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), 4)
    with pytest.raises(Refused, match=r"1:batch_norm.*one value per channel.*layer_norm"):
        treated(flat, torch.randn(4, 4), "swap-norm", to="instance_norm")
    assert isinstance(flat[1], nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("channels", "positions", "groups"),
    [(64, 100, 32), (48, 100, 24), (16, 100, 8), (16, 1, 1), (256, 1, 16), (7, 9, 1), (1, 9, 1)],
)
def test_groups_divide_the_channels_and_hold_enough_values(channels, positions, groups):
    assert group_count(channels, positions=positions) == groups


@pytest.mark.parametrize("to", [*SAME, *OTHER])
def test_a_norm_written_by_hand_is_swapped_where_it_is_measured_to_be_one(to):
    net = learnt(nn.Sequential(nn.Conv2d(3, 8, 3), HandNorm(8), nn.ReLU()), 3, 10, 10)
    before, parameters = net(x), set(net.parameters())
    treated(net, x, "swap-norm", to=to)
    assert not isinstance(net[1], HandNorm)
    assert parameters <= set(net.parameters())
    if to in SAME:
        torch.testing.assert_close(net(x), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("to", [*SAME, *OTHER])
def test_what_a_norms_module_does_after_it_goes_on_with_the_new_norm(to):
    net = learnt(nn.Sequential(nn.Conv2d(3, 8, 3), NormAndChildren(8)), 3, 10, 10)
    parameters, keys = dict(net.named_parameters()), set(net.state_dict())
    drop = net[1].drop
    _, changes = treated(net, x, "swap-norm", to=to)
    assert not isinstance(net[1], NormAndChildren)
    assert net[1].drop is drop
    assert net[1].weight is parameters["1.weight"]
    assert (net.train()(x) == 0).float().mean() > 0.1  # dropout acts, still
    assert net.eval()(x).min() >= 0
    assert all(torch.equal(other(x), net(x)) for other in copies(net))
    assert type(net[1].act) is nn.ReLU  # the dropout is between the two
    assert len(changes) == 1
    if to in SAME:
        assert set(net.state_dict()) == keys


@pytest.mark.parametrize("training", [False, True])
def test_what_goes_on_with_the_new_norm_keeps_a_mode_of_its_own(training):
    net = learnt(nn.Sequential(nn.Conv2d(3, 8, 3), NormAndChildren(8)), 3, 10, 10).train(training)
    drop = net[1].drop.train(not training)
    surgery, _ = treated(net, x, "swap-norm")
    modes = net[1].training, drop.training
    surgery.undo()
    assert modes == (net[1].training, drop.training) == (training, not training)


@pytest.mark.parametrize("to", SAME)
def test_norms_with_children_evaluate_as_they_did(to):
    net = learnt(nn.Sequential(nn.Conv2d(3, 8, 3), NormAndChildren(8)), 3, 10, 10)
    before = net(x)
    treated(net, x, "swap-norm", to=to)
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=0)


def test_a_module_that_does_more_than_normalise_is_refused_by_name_with_the_edit():
    net = learnt(nn.Sequential(nn.Conv2d(3, 8, 3), NormAndMore(8)), 3, 10, 10)
    before = net(x)
    with pytest.raises(Refused, match=r"'1' \(NormAndMore.*test_swap_norm.py.*F\.group_norm\(x, 4, weight"):
        treated(net, x, "swap-norm", target=vs.check(net, example_inputs=x).layers[0].id)
    assert torch.equal(net(x), before)


def test_a_norm_that_stays_is_named_in_the_notes():
    layers = nn.Conv2d(3, 8, 3), NormAndMore(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    patient = patient_of(learnt(nn.Sequential(*layers), 3, 10, 10), x)
    edits = plan_cure(patient, Cure("swap-norm", "", "unsafe"), None)
    assert [edit.path for edit in edits] == ["3"]
    (note,) = patient.notes
    assert "'1' (NormAndMore" in note


def test_a_network_without_norms_is_refused():
    with pytest.raises(Refused, match="no norm"):
        treated(nn.Sequential(nn.Linear(3, 3)), torch.randn(4, 3), "swap-norm")


def test_options_are_checked():
    patient = patient_of(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3))
    with pytest.raises(vs.VarshiftError, match="to='magic'"):
        plan_cure(patient, Cure("swap-norm", "", "unsafe", None, {"to": "magic"}), None)
    with pytest.raises(vs.VarshiftError, match="groups=0"):
        plan_cure(patient, Cure("swap-norm", "", "unsafe", None, {"groups": 0}), None)
    assert {kind.safety for kind in LAYERS.values()} == {"safe", "unsafe"}


def test_the_finding_of_small_batches_is_gone_with_norms_of_single_samples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(64, 8)
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(10):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
    cured = vs.fix(net, loader=loader, select=["VS302"], unsafe=True)
    assert [one.code for one in cured.before.findings] == ["VS302"]
    assert not cured.after.findings
    assert not cured.failures
    assert isinstance(cured.model[1], nn.GroupNorm)
    assert isinstance(net[1], nn.BatchNorm1d)
    # One process has nothing to be synchronised with, unless the user says that there will be more.
    finding = cured.before.findings[0]
    with pytest.raises(Refused, match="one process only"):
        treated(net, inputs[:4], "sync-norm", loader=loader, finding=finding)
    treated(net, inputs[:4], "sync-norm")
    assert isinstance(net[1], nn.SyncBatchNorm)


def test_a_plan_refuses_another_class(network):
    edits = plan_cure(patient_of(network, x), Cure("swap-norm", "", "unsafe"), None)
    network.norm1 = nn.LayerNorm([8, 8, 8])
    with pytest.raises(Refused, match="is a LayerNorm, and was a BatchNorm2d"):
        edits[0].apply(Surgery(network))
