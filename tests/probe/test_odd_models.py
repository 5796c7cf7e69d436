"""Models that are not what one expects: hooks that change inputs, merged weights, no values, no tracking."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import varshift as vs
from varshift.evidence import mode_facts
from varshift.model import find_norms, preserved
from varshift.probe import draw_batches, measure


class HandWritten(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()


def inputs_of(net, batches, layer):
    with torch.no_grad():
        return torch.cat([net[:layer](x) for x, _ in batches])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, HandWritten])
def test_statistics_are_of_what_a_hook_of_the_user_makes_of_the_input(norm, batches):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Flatten(), nn.Linear(512, 5))
    net[1].register_forward_pre_hook(lambda module, args: (args[0] * 10,))
    vs.recalibrate(net, batches)
    x = inputs_of(net, batches, 1) * 10
    torch.testing.assert_close(net[1].running_var, x.var((0, 2, 3)))


class Adapter(nn.Module):
    """A linear layer that merges a low-rank update into its weight in evaluation, as LoRA layers do."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.1)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            sign = -1 if mode else 1
            self.weight.data += sign * self.up.data @ self.down.data
            self.merged = not mode
        return self

    def forward(self, x):
        out = F.linear(x, self.weight)
        return out if self.merged else out + F.linear(F.linear(x, self.down), self.up)


@pytest.mark.parametrize("training", [True, False])
def test_weights_merged_for_evaluation_are_split_again(batches, training):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), Adapter(300, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)).train(training)
    weight = net[1].weight.detach().clone()
    for act in (lambda: vs.recalibrate(net, batches), lambda: vs.check(net, batches)):
        act()
        assert (net.training, net[1].merged) == (training, not training)
        torch.testing.assert_close(net[1].weight, weight)


def test_a_model_is_restored_without_its_own_methods_which_may_fail(net):
    class Fragile(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.broken = inner, False

        def train(self, mode=True):
            if self.broken:
                raise RuntimeError("no way back")
            return super().train(mode)

    model = Fragile(net).train()
    before = copy.deepcopy(model.state_dict())

    with preserved(model):
        model.eval()
        net[2].running_mean += 1
        model.broken = True
    assert not model.broken
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_statistics_that_a_norm_itself_wrote_are_put_back(net, batches):
    net.train()
    before = copy.deepcopy(net.state_dict())
    with preserved(net):
        net(batches[0][0])
        assert not torch.equal(net[2].running_mean, before["2.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_models_own_eval_decides_what_is_measured_as_deployed(net, batches):
    class Forgetful(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def eval(self):
            return self

        def forward(self, x):
            return self.inner(x)

    model = Forgetful(net).train()
    gap = measure(model, batches).gap
    assert gap.states["eval"] == pytest.approx(gap.states["train"], rel=0.05)
    with preserved(model):
        assert mode_facts(model, find_norms(model)).stuck_training


def test_norms_that_stopped_tracking_are_measured_in_every_state(net, batches):
    reference = measure(copy.deepcopy(net), batches)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    assert measure(net, batches) == reference
    (finding,) = [finding for finding in vs.check(net, batches).findings if finding.code == "VS401"]
    assert [site.id.module for site in finding.sites] == ["2", "5"]
    assert "track_running_stats=False" in finding.message


def test_an_instance_norm_never_uses_the_statistics_it_stopped_tracking():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True))
    net[1].track_running_stats = False
    assert find_norms(net)[0].tracks


def test_models_made_in_inference_mode_are_recalibrated(batches, make_net):
    with torch.inference_mode():
        net = make_net()
    before = net[2].running_mean.clone()
    handle = vs.recalibrate(net, batches)
    assert not torch.equal(net[2].running_mean, before)
    handle.undo()
    assert torch.equal(net[2].running_mean, before)


def test_undo_finds_buffers_that_were_converted_since(net, batches):
    handle = vs.recalibrate(net, batches)
    net.double()
    handle.undo()
    assert torch.equal(net[2].running_mean, torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: net.to("meta"), "parameter '0.weight' is on the meta device"),
        (lambda net: nn.Sequential(*net[:9], nn.LazyLinear(5)), r"module '9' \(LazyLinear\) is lazy"),
        (lambda net: nn.Sequential(net[0], nn.LazyBatchNorm2d()), r"norm '1' \(LazyBatchNorm2d\) is lazy"),
        (lambda net: lambda x: x, "model is a function: expected a torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_run_are_refused_with_the_reason(net, batches, act, spoil, message):
    with pytest.raises(vs.ModelError, match=message):
        act(spoil(net), batches)


def test_a_network_on_the_meta_device_is_captured_from_a_shape(net):
    assert vs.check(net.to("meta"), shape=(3, 10, 10)).findings


def test_what_is_not_finite_is_said(net, batches):
    with torch.no_grad():
        net[4].weight[0, 0, 0, 0] = torch.nan
    limits = " ".join(vs.check(net, batches).limits)
    assert "loss is not finite in the states train" in limits
    assert "signal at the norm '5' is not finite" in limits


def test_the_effective_batch_of_a_shared_norm_is_not_known():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x + 5)

    batches = draw_batches([torch.randn(32, 4) for _ in range(6)], None, "cpu")
    assert measure(Shared(), batches).layers[0].effective_batch is None


def test_a_last_batch_of_one_sample_changes_neither_effective_batch_nor_staleness():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40))
    data = [torch.randn(64, 6) for _ in range(24)]
    whole = measure(net, data).layers[0]
    with_rest = measure(net, [*data, torch.randn(1, 6)]).layers[0]
    assert with_rest.effective_batch == pytest.approx(whole.effective_batch, rel=0.3)
    assert with_rest.stale_ratio == pytest.approx(whole.stale_ratio)
