"""Recalibration: the right numbers, and nothing else changed."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


def reference(model, batches):
    """Pooled input moments of every norm in state ``clean``, restated with hooks and float64."""
    model = copy.deepcopy(model).eval()
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.train()

            def keep(module, args, name=name):
                inputs.setdefault(name, []).append(args[0].double().movedim(1, 0).flatten(1))

            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    found = {name: torch.cat(values, 1) for name, values in inputs.items()}
    return {name: (values.mean(1), values.var(1)) for name, values in found.items()}


def test_statistics_equal_a_restatement(net, batches):
    expected = reference(net, batches)
    handle = vs.recalibrate(net, batches)
    for name, (mean, var) in expected.items():
        norm = net.get_submodule(name)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)
        assert int(norm.num_batches_tracked) == len(batches)
    assert [layer.name for layer in handle.layers] == list(expected)
    assert all(layer.updated for layer in handle.layers)
    assert handle.batches == len(batches)
    assert handle.samples == sum(len(x) for x, _ in batches)
    assert not handle.skipped


def test_layers_tell_before_and_after(net, batches):
    before = net[2].running_var.mean().item()
    layer = vs.recalibrate(net, batches).layers[0]
    assert layer.var_before == pytest.approx(before)
    assert layer.var_after == pytest.approx(net[2].running_var.double().mean().item())
    assert layer.mean_after == pytest.approx(net[2].running_mean.double().mean().item())


def test_undo_gives_back_every_bit(net, batches, fingerprint, assert_same):
    before = fingerprint(net)
    handle = vs.recalibrate(net, batches)
    assert not torch.equal(before["state"]["2.running_var"], net[2].running_var)
    handle.undo()
    assert_same(before, fingerprint(net))


def test_only_norm_statistics_change(net, batches, fingerprint, assert_same):
    before = fingerprint(net)
    vs.recalibrate(net, batches)
    after = fingerprint(net)
    for key in list(before["state"]):
        if "running_" in key or "num_batches" in key:
            after["state"][key] = before["state"][key]
    assert_same(before, after)


def test_noise_is_off_by_default_and_on_by_request(make_net, batches):
    torch.manual_seed(0)
    quiet, noisy = make_net(0.5), None
    noisy = copy.deepcopy(quiet)
    silent = copy.deepcopy(quiet)
    silent[1].p = 0.0
    for module in (quiet, noisy):
        module.train()
    vs.recalibrate(quiet, batches)
    vs.recalibrate(silent, batches)
    vs.recalibrate(noisy, batches, noise=True)
    assert torch.equal(quiet[2].running_var, silent[2].running_var)
    # Inverted dropout at one half adds the second moment: the variance at least doubles.
    assert (noisy[2].running_var > 1.8 * quiet[2].running_var).all()


def test_functional_dropout_is_off_too(batches):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(F.dropout(self.conv(x), 0.5, self.training))

    model = Functional().train()
    expected = reference(model, batches)["norm"][1]
    vs.recalibrate(model, batches)
    torch.testing.assert_close(model.norm.running_var.double(), expected, rtol=1e-5, atol=1e-6)


def test_unreached_norm_is_left_alone_and_named(net, batches):
    net.extra = nn.BatchNorm2d(4)
    net.forward = lambda x: net[:10](x)
    net.extra.running_var.fill_(3.0)
    net.extra.running_mean.fill_(-2.0)
    handle = vs.recalibrate(net, batches)
    assert torch.equal(net.extra.running_var, torch.full((4,), 3.0))
    assert torch.equal(net.extra.running_mean, torch.full((4,), -2.0))
    assert handle.skipped == {"extra": "no batch reached it"}
    assert "extra" in repr(handle)


@pytest.mark.parametrize("shape", [(256, 4), (64, 4, 30), (16, 4, 6, 6), (16, 4, 3, 3)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_large_mean_and_small_spread_survive(shape, threads, channels_last):
    torch.manual_seed(0)
    norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    model = nn.Sequential(norms[len(shape)](4))
    data = (1000 + 0.01 * torch.randn(20, *shape, dtype=torch.float64)).float()
    if channels_last and len(shape) == 4:
        data = data.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, data.shape[:2])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vs.recalibrate(model, list(data))
    finally:
        torch.set_num_threads(before)
    everything = data.double().movedim(2, 0).flatten(1)
    torch.testing.assert_close(model[0].running_var.double(), everything.var(1), rtol=1e-4, atol=0)
    sigma = everything.std(1)
    offset = (model[0].running_mean.double() - everything.mean(1)).abs() / sigma
    assert float(offset.max()) < 0.01  # half a unit in the last place of float32 is 0.003 sigmas here


def test_sorted_batches_give_the_pooled_variance():
    # Each batch is nearly constant; the mean of batch variances would be almost nothing.
    norm = nn.Sequential(nn.BatchNorm1d(1))
    data = [torch.full((50, 1), float(i)) + 0.01 * torch.randn(50, 1) for i in range(10)]
    vs.recalibrate(norm, data)
    assert float(norm[0].running_var) == pytest.approx(float(torch.cat(data).var()), rel=1e-5)


def test_batches_weigh_by_their_size():
    norm = nn.Sequential(nn.BatchNorm1d(1))
    data = [torch.zeros(99, 1), torch.full((1, 1), 100.0)]
    vs.recalibrate(norm, data)
    assert float(norm[0].running_mean) == pytest.approx(1.0, rel=1e-6)
    assert float(norm[0].running_var) == pytest.approx(float(torch.cat(data).var()), rel=1e-6)


def test_ema_is_the_norms_own_moving_average(net, batches):
    expected = copy.deepcopy(net).eval()
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        for x, _ in batches:
            expected(x)
    vs.recalibrate(net, batches, estimator="ema")
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            other = expected.get_submodule(name)
            torch.testing.assert_close(module.running_mean, other.running_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(module.running_var, other.running_var, rtol=1e-5, atol=1e-6)


def test_max_batches_limits_what_is_drawn(net, batches):
    drawn = []

    def loader():
        for batch in batches:
            drawn.append(batch)
            yield batch

    handle = vs.recalibrate(net, loader(), max_batches=2)
    assert handle.batches == len(drawn) == 2


def test_tolerance_stops_early_and_means_what_it_says():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4), nn.BatchNorm1d(4)
    )
    data = torch.randn(400, 64, 6)
    full = copy.deepcopy(model)
    vs.recalibrate(full, list(data))
    handle = vs.recalibrate(model, list(data), tolerance=0.02)
    assert handle.converged is True
    assert 4 <= handle.batches < 200
    for index in (1, 4):
        sigma = full[index].running_var.sqrt()
        std_error = (model[index].running_var.sqrt() / sigma - 1).square().mean().sqrt()
        mean_error = ((model[index].running_mean - full[index].running_mean) / sigma).square().mean().sqrt()
        assert std_error < 3 * 0.02
        assert mean_error < 3 * 0.02


def test_tolerance_not_reached_is_said(net, batches):
    handle = vs.recalibrate(net, batches, tolerance=1e-6)
    assert handle.converged is False
    assert handle.batches == len(batches)
    assert "not reached" in repr(handle)


def test_shared_norm_counts_every_call():
    torch.manual_seed(0)
    shared = nn.BatchNorm1d(3)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = shared

        def forward(self, x):
            return self.norm(x) + self.norm(x + 6)

    model = Twice()
    x = torch.randn(200, 3)
    vs.recalibrate(model, [x[:100], x[100:]])
    everything = torch.cat([x, x + 6]).double()
    torch.testing.assert_close(shared.running_mean.double(), everything.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.running_var.double(), everything.var(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (9,)), (nn.BatchNorm1d, (9, 7)), (nn.BatchNorm3d, (9, 3, 4, 5))]
)
def test_all_dimensions(norm, shape):
    torch.manual_seed(0)
    model = nn.Sequential(norm(9))
    data = [torch.randn(8, *shape) * 2 + 1 for _ in range(3)]
    vs.recalibrate(model, data)
    flat = torch.cat(data).double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(model[0].running_var.double(), flat.var(1), rtol=1e-5, atol=1e-6)


def test_instance_norm_averages_over_instances():
    torch.manual_seed(0)
    model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True))
    data = [torch.randn(4, 3, 6, 6) * (i + 1) for i in range(3)]
    vs.recalibrate(model, data)
    instances = torch.cat(data).double().flatten(2)
    torch.testing.assert_close(
        model[0].running_mean.double(), instances.mean(2).mean(0), rtol=1e-5, atol=1e-6
    )
    # Pooled over values, so the usual correction is over all of them; 432 values make it 0.2 %.
    within = instances.var(2, correction=0).mean(0)
    torch.testing.assert_close(model[0].running_var.double(), within, rtol=0.04, atol=0)


class HandWritten(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) / (var + 1e-5).sqrt()


class CallsKernel(HandWritten):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, 0.1, 1e-5)


class Subclass(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("norm", [HandWritten, CallsKernel, Subclass])
def test_norms_of_any_class(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), norm(6), nn.Dropout(0.5), nn.Linear(6, 3), norm(3)).train()
    data = [torch.randn(30, 4) + 2 for _ in range(4)]
    expected = reference(model, [(x, None) for x in data])
    vs.recalibrate(model, data)
    for name, (mean, var) in expected.items():
        module = model.get_submodule(name)
        torch.testing.assert_close(module.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.running_var.double(), var, rtol=1e-5, atol=1e-5)


class Frozen(HandWritten):
    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


def test_norms_that_never_learn_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Frozen(6), nn.Linear(6, 3), nn.BatchNorm1d(3))
    handle = vs.recalibrate(model, [torch.randn(30, 4)])
    assert torch.equal(model[1].running_var, torch.ones(6))
    assert "in training too" in handle.skipped["1"]
    assert handle.layers[1].updated


def test_a_freeze_that_survives_train_is_respected(net, batches):
    class Freezes(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[2].eval()
            return self

    model = Freezes(*net)
    before = model[2].running_var.clone()
    handle = vs.recalibrate(model, batches)
    assert torch.equal(model[2].running_var, before)
    assert list(handle.skipped) == ["2"]


def test_momentum_and_bad_old_statistics_do_not_matter(net, batches):
    other = copy.deepcopy(net)
    other[2].running_var.fill_(float("nan"))
    other[2].running_mean.fill_(float("inf"))
    other[5].momentum = None
    vs.recalibrate(net, batches)
    vs.recalibrate(other, batches)
    for index in (2, 5):
        assert torch.equal(net[index].running_var, other[index].running_var)
        assert torch.equal(net[index].running_mean, other[index].running_mean)
    assert other[5].momentum is None


def test_half_precision_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3)).to(torch.bfloat16)
    data = [torch.randn(64, 3, dtype=torch.bfloat16) * 3 for _ in range(4)]
    vs.recalibrate(model, data)
    assert model[0].running_var.dtype == torch.bfloat16
    expected = torch.cat(data).double().var(0)
    torch.testing.assert_close(model[0].running_var.double(), expected, rtol=2**-8, atol=0)


def test_statistics_that_do_not_fit_half_precision_are_refused(fingerprint, assert_same):
    model = nn.Sequential(nn.BatchNorm1d(2)).to(torch.float16)
    before = fingerprint(model)
    data = [torch.tensor([[300.0, 1.0], [-300.0, 0.0]], dtype=torch.float16) for _ in range(2)]
    with pytest.raises(vs.ModelError, match=r"'0'.*float16"):
        vs.recalibrate(model, data)
    assert_same(before, fingerprint(model))


def test_double_precision_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    data = [torch.randn(32, 3, dtype=torch.float64) for _ in range(3)]
    expected = reference(model, [(x, None) for x in data])["1"]
    vs.recalibrate(model, data)
    torch.testing.assert_close(model[1].running_var, expected[1], rtol=1e-12, atol=1e-14)


def test_single_value_per_channel_is_no_variance():
    model = nn.Sequential(nn.BatchNorm1d(3))
    handle = vs.recalibrate(model, [torch.randn(1, 3)])
    assert torch.equal(model[0].running_var, torch.ones(3))
    assert "single value" in handle.skipped["0"]


def test_a_last_batch_of_one_joins_the_pool():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3))
    data = [torch.randn(16, 3), torch.randn(1, 3) + 9]
    vs.recalibrate(model, data)
    torch.testing.assert_close(
        model[0].running_var.double(), torch.cat(data).double().var(0), rtol=1e-5, atol=0
    )


def test_model_without_norms(batches):
    handle = vs.recalibrate(nn.Sequential(nn.Flatten(), nn.Linear(300, 2)), batches)
    assert handle.layers == ()
    handle.undo()


def test_compiled_and_wrapped_models(net, batches):
    plain = copy.deepcopy(net)
    vs.recalibrate(plain, batches)
    for wrapped in (torch.compile(copy.deepcopy(net), backend="eager"), nn.DataParallel(copy.deepcopy(net))):
        vs.recalibrate(wrapped, batches)
        inner = dict(wrapped.named_buffers())
        name = next(key for key in inner if key.endswith("2.running_var"))
        assert torch.equal(inner[name], plain[2].running_var)


def test_dict_batches_and_own_forward(net, batches):
    other = copy.deepcopy(net)
    vs.recalibrate(net, batches)
    vs.recalibrate(other, [{"image": x, "label": y} for x, y in batches], forward=lambda m, b: m(b["image"]))
    assert torch.equal(net[2].running_var, other[2].running_var)


def test_dataloader(net):
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, 10, 10), torch.randint(5, (40,))
    handle = vs.recalibrate(net, DataLoader(TensorDataset(x, y), batch_size=16))
    assert (handle.batches, handle.samples) == (3, 40)


# -- failures leave nothing behind -------------------------------------------------------------------------


class BoomError(RuntimeError):
    pass


def failing_loader(batches, error, after=2):
    for number, batch in enumerate(batches):
        if number == after:
            raise error
        yield batch


@pytest.mark.parametrize("error", [BoomError("loader"), KeyboardInterrupt()])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ["pooled", "ema"])
def test_failing_loader(net, batches, fingerprint, assert_same, error, training, estimator):
    net.train(training)
    net[5].train(not training)
    net[5].momentum = 0.37
    before = fingerprint(net)
    with pytest.raises(type(error)):
        vs.recalibrate(net, failing_loader(batches, error), noise=True, estimator=estimator, tolerance=0.1)
    assert_same(before, fingerprint(net))


@pytest.mark.parametrize("error", [BoomError("model"), KeyboardInterrupt()])
def test_failing_model(net, batches, fingerprint, assert_same, error):
    calls = []

    def hook(module, args):
        calls.append(1)
        random.random()
        np.random.random()
        if len(calls) == 3:
            raise error

    net[4].register_forward_pre_hook(hook)
    before = fingerprint(net)
    with pytest.raises((vs.ModelError, KeyboardInterrupt)) as caught:
        vs.recalibrate(net, batches, noise=True)
    assert error in (caught.value, caught.value.__cause__)
    assert_same(before, fingerprint(net))


def test_hooks_on_hand_written_norms_are_removed_after_a_failure(fingerprint, assert_same):
    class Breaks(nn.Module):
        def forward(self, x):
            raise BoomError("late")

    model = nn.Sequential(nn.Linear(4, 6), HandWritten(6), Breaks())
    data = [torch.randn(8, 4)]
    before = fingerprint(model)
    with pytest.raises(vs.ModelError, match=r"input shapes \(8, 4\), in '2' \(Breaks\)\): BoomError: late"):
        vs.recalibrate(model, data)
    assert_same(before, fingerprint(model))


def test_short_loader_leaves_nothing_behind(net, batches, fingerprint, assert_same):
    before = fingerprint(net)
    handle = vs.recalibrate(net, batches[:1], max_batches=100)
    assert handle.batches == 1
    handle.undo()
    assert_same(before, fingerprint(net))


@pytest.mark.parametrize("loader", [[], iter(())])
def test_empty_loader(net, loader, fingerprint, assert_same):
    before = fingerprint(net)
    with pytest.raises(vs.DataError, match="no batches"):
        vs.recalibrate(net, loader)
    assert_same(before, fingerprint(net))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(net, batches, value, fingerprint, assert_same):
    batches[3][0][2, 1, 4, 4] = value
    before = fingerprint(net)
    with pytest.raises(vs.DataError, match="batch 3"):
        vs.recalibrate(net, batches)
    assert_same(before, fingerprint(net))


def test_weights_that_are_not_finite(net, batches, fingerprint, assert_same):
    with torch.no_grad():
        net[4].weight[0, 0, 0, 0] = float("nan")
    before = fingerprint(net)
    with pytest.raises(vs.ModelError, match="'5'"):
        vs.recalibrate(net, batches)
    assert_same(before, fingerprint(net))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "median"}, "estimator is 'median'"),
        ({"tolerance": 0.0}, "tolerance is 0"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"max_batches": 0}, "max_batches is 0"),
    ],
)
def test_bad_arguments(net, batches, arguments, message):
    with pytest.raises(ValueError, match=message):
        vs.recalibrate(net, batches, **arguments)


def test_a_tensor_is_not_a_loader(net, batches):
    with pytest.raises(vs.DataError, match=r"Wrap a single batch"):
        vs.recalibrate(net, batches[0][0])


def test_spectral_norm_buffers_are_restored(batches, fingerprint, assert_same):
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    model = nn.Sequential(conv, nn.BatchNorm2d(4)).train()
    before = fingerprint(model)
    vs.recalibrate(model, batches, noise=True).undo()
    assert_same(before, fingerprint(model))
