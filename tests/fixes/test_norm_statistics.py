"""Cures of what norms keep and how: statistics dropped, tracked, held, in float32."""

import pytest
import torch
from torch import nn
from treatment import codes, copies, digest, images, learnt, same, stack, treated

import varshift as vs
from varshift.fixes import Refused

x = next(iter(images(shuffle=False)))[0]


class HandInstanceNorm(nn.Module):
    """An instance norm written by hand that keeps running statistics."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x):
        if self.training:
            mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
            with torch.no_grad():
                self.mean.lerp_(mean.mean((0, 2, 3)), 0.1)
                self.var.lerp_(var.mean((0, 2, 3)), 0.1)
        else:
            mean, var = self.mean[None, :, None, None], self.var[None, :, None, None]
        return (x - mean) / (var + 1e-5).sqrt()


def test_an_instance_norm_evaluates_on_each_sample_after_its_cure():
    network = learnt(lambda: stack(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)))
    before = digest(network)
    cured = vs.fix(network, loader=images(), select=["VS209"])
    assert codes(cured.before) == ["VS209"]
    assert codes(cured.after) == []
    assert not cured.failures
    assert same(digest(network), before)
    assert cured.model[1].running_mean is None
    assert "1.running_mean" not in cured.model.state_dict()
    alone = nn.InstanceNorm2d(8, affine=True)
    alone.load_state_dict(cured.model[1].state_dict())
    signal = cured.model[0](x)
    torch.testing.assert_close(cured.model.eval()[1](signal), alone(signal), atol=1e-5, rtol=0)


def test_a_hand_written_norm_of_single_samples_is_refused_with_the_edit():
    network = learnt(lambda: stack(HandInstanceNorm(8)))
    cured = vs.fix(network, loader=images(), select=["VS209"])
    assert codes(cured.before) == ["VS209"]
    reason = dict(cured.failures[0].tried)["drop-statistics"]
    assert "'1' (HandInstanceNorm" in reason
    assert "each sample" in reason


def test_batch_statistics_are_left_alone():
    with pytest.raises(Refused, match="no norm keeps running statistics of single samples"):
        treated(stack(nn.BatchNorm2d(8)), x, "drop-statistics")


def test_a_norm_without_statistics_learns_some_from_data():
    network = learnt(lambda: stack(nn.BatchNorm2d(8, track_running_stats=False)))
    cured = vs.fix(network, loader=images(), select=["VS401"], unsafe=True)
    assert codes(cured.before) == ["VS401"]
    assert codes(cured.after) == []
    assert cured.model[1].track_running_stats
    assert cured.model[1].running_var.min() > 0
    assert not bool((cured.model[1].running_var == 1).any())
    torch.testing.assert_close(
        cured.model.eval()(x[:1]), cured.model(x)[:1], atol=1e-5, rtol=1e-5
    )  # no batch mates
    assert network[1].running_mean is None


def test_statistics_that_were_told_not_to_move_move_again():
    network = learnt(lambda: stack(nn.BatchNorm2d(8)))
    network[1].track_running_stats = False
    cured = vs.fix(network, loader=images(), select=["VS401"])
    assert codes(cured.before) == ["VS401"]
    assert codes(cured.after) == []
    assert cured.model[1].track_running_stats


def test_new_statistics_need_data():
    network = stack(nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(Refused, match="loader="):
        treated(network, x, "track-statistics")
    with pytest.raises(Refused, match="every batch norm keeps"):
        treated(stack(nn.BatchNorm2d(8)), x, "track-statistics", loader=images())


class InHalf(nn.Module):
    """A norm within a piece of half precision."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm.to(torch.bfloat16)

    def forward(self, x):
        return self.norm(x.to(torch.bfloat16)).float()


class PlainHalfNorm(nn.Module):
    """A batch norm written by hand, without a thought of types."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, PlainHalfNorm])
def test_a_norm_in_half_precision_is_kept_in_float32(norm):
    network = learnt(lambda: stack(InHalf(norm(8))))
    before = digest(network)
    output = network.eval()(x)
    network.train()
    cured = vs.fix(network, loader=images(), select=["VS206"])
    assert "VS206" in codes(cured.before)
    assert "VS206" not in codes(cured.after)
    assert same(digest(network), before)
    kept = cured.model[1].norm
    assert {t.dtype for t in (*kept.parameters(), *kept.buffers()) if t.is_floating_point()} == {
        torch.float32
    }
    assert type(kept).__name__ == norm.__name__
    assert kept(torch.randn(2, 8, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert set(cured.model.state_dict()) == set(network.state_dict())
    treated(network, x, "keep-float32")
    torch.testing.assert_close(network.eval()(x), output, atol=0.02, rtol=0.02)  # the precision of bfloat16
    for other in copies(cured.model.eval()):
        assert torch.equal(other(x), cured.model(x))


def test_a_norm_in_float32_stays():
    with pytest.raises(Refused, match="no norm holds numbers of half precision"):
        treated(stack(nn.BatchNorm2d(8)), x, "keep-float32")


class BatchNormAndMore(nn.BatchNorm2d):
    """A batch norm with an activation."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAndMore])
def test_frozen_norms_hold_their_statistics_whatever_train_does(norm):
    network = learnt(lambda: stack(norm(8)))
    network[0].requires_grad_(False)
    network[1].requires_grad_(False)
    cured = vs.fix(network, loader=images(), select=["VS402"], unsafe=True)
    assert "VS402" in codes(cured.before)
    assert "VS402" not in codes(cured.after)
    held = cured.model[1]
    assert not any(parameter.requires_grad for parameter in held.parameters())
    assert torch.equal(held.weight, network[1].weight)
    torch.testing.assert_close(cured.model.eval()(x), network.eval()(x), atol=1e-5, rtol=0)
    for other in (cured.model, *copies(cured.model)):
        mean = other[1].running_mean.clone()
        signal = other.train()[0](x)
        inside = other[1](signal)
        assert torch.equal(other[1].running_mean, mean)
        assert torch.equal(inside, other.eval()[1](signal))
        assert other.train()[4].training
    assert set(cured.model.state_dict()) == set(network.state_dict())


def test_norms_that_train_are_not_held():
    with pytest.raises(Refused, match="no norm has frozen parameters"):
        treated(stack(nn.BatchNorm2d(8)), x, "hold-statistics")


def test_parameters_of_a_norm_in_evaluation_mode_are_frozen_with_it():
    network = learnt(lambda: stack(nn.BatchNorm2d(8)))
    network[1].eval()
    cured = vs.fix(network, loader=images(), select=["VS401"])
    assert codes(cured.before) == ["VS401"]
    assert codes(cured.after) == []
    assert [p.requires_grad for p in cured.model[1].parameters()] == [False, False]
    assert [p.requires_grad for p in cured.model[4].parameters()] == [True, True]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_freezing_is_undone():
    network = stack(nn.BatchNorm2d(8)).train()
    network[1].eval()
    surgery, _ = treated(network, x, "freeze-parameters")
    surgery.undo()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_module_in_another_mode_than_the_model_is_put_right():
    network = learnt(lambda: stack(nn.BatchNorm2d(8))).eval()
    network[1].train()
    cured = vs.fix(network, loader=images(), select=["VS401"])
    assert codes(cured.before) == ["VS401"]
    assert codes(cured.after) == []
    assert not any(module.training for module in cured.model.modules())
    assert network[1].training


def test_modes_that_agree_are_left_alone():
    network = stack(nn.BatchNorm2d(8))
    with pytest.raises(Refused, match="every module is in training mode"):
        treated(network, x, "set-mode")
    surgery, changes = treated(network, x, "set-mode", training=False)
    assert [str(change.site) for change in changes] == [":module"]
    assert not network[1].training
    surgery.undo()
    assert all(module.training for module in network.modules())


class KerasNorm(nn.Module):
    """A batch norm written by hand that weighs the past, as Keras does."""

    def __init__(self, channels, decay=0.9):
        super().__init__()
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_var", torch.ones(channels))
        self.decay, self.epsilon = decay, 1e-3

    def forward(self, x):
        mean, var = self.moving_mean, self.moving_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.moving_mean.mul_(self.decay).add_(mean, alpha=1 - self.decay)
                self.moving_var.mul_(self.decay).add_(var, alpha=1 - self.decay)
        return (x - mean[:, None, None]) / (var[:, None, None] + self.epsilon).sqrt()


def test_a_ported_momentum_is_set_right():
    network = learnt(lambda: stack(nn.BatchNorm2d(8, momentum=0.99)))
    cured = vs.fix(network, loader=images(), select=["VS204"])
    assert codes(cured.before) == ["VS204"]
    assert codes(cured.after) == []
    assert cured.model[1].momentum == pytest.approx(0.01)
    assert (network[1].momentum, cured.model[4].momentum) == (0.99, 0.1)


def test_momentum_is_set_where_a_hand_written_norm_keeps_it():
    network = learnt(lambda: stack(KerasNorm(8)))
    _, changes = treated(network, x, "set-momentum", momentum=0.3)
    assert network[1].decay == pytest.approx(0.7)
    assert network[4].momentum == 0.3
    assert network[1].epsilon == 1e-3
    assert len(changes) == 2
    with pytest.raises(Refused, match="already"):
        treated(network, x, "set-momentum", momentum=0.3)


def test_a_momentum_that_no_attribute_holds_is_refused_with_the_place():
    network = learnt(lambda: stack(PlainHalfNorm(8)))
    with pytest.raises(Refused, match=r"'1' \(PlainHalfNorm.*weight of a batch"):
        treated(network, x, "set-momentum", momentum=0.3)
    assert network[4].momentum == 0.1
    with pytest.raises(vs.VarshiftError, match=r"momentum=1\.5"):
        treated(network, x, "set-momentum", momentum=1.5)
