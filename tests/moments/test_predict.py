"""`predict` on networks and inputs of all kinds, and what it leaves as it was."""

import copy
import doctest
import importlib
import random

import numpy as np
import pytest
import torch
from torch import library, nn
from torch.nn import functional as F

import varshift as vs
from varshift import SiteId
from varshift.moments import predict

EPS = 1e-5  # of torch's norms


def net(p=0.5, norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm(8),
        nn.ReLU(),
        nn.Dropout(p),
        nn.Conv2d(8, 12, 3),
        norm(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def learned(model, *inputs, batches=40):
    """The model with the statistics that training on such inputs leaves."""
    model.train()
    with torch.no_grad():
        for _ in range(batches):
            model(*(make() for make in inputs))
    for module in model.modules():
        if getattr(module, "num_batches_tracked", None) is not None:
            module.num_batches_tracked.fill_(2000)  # as after a training
    return model


def images():
    return torch.randn(64, 3, 10, 10).cumsum(-1) / 3 + 0.4


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return learned(net(), images)


def everything(model):
    states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [id(value) for value in (*model.parameters(), *model.buffers())],
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        states,
    )


@pytest.mark.parametrize("how", ["anchored", "hybrid"])
def test_leaves_model_and_random_states_bit_for_bit(how, trained):
    model = copy.deepcopy(trained)
    model[1].eval()
    model[4].weight.requires_grad_(False)
    data = images()
    before = everything(model)
    predict(model, data, method=how)
    after = everything(model)
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:] == after[1:]


def test_instance_norm_with_statistics_is_not_updated():
    model = nn.Sequential(nn.Dropout(0.3), nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, images())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_seed_decides_everything(trained):
    first, second = predict(trained, shape=(3, 10, 10)), predict(trained, shape=(3, 10, 10))
    other = predict(trained, shape=(3, 10, 10), seed=1)
    assert first == second
    assert first != other
    assert first.layer("5").ratio == pytest.approx(other.layer("5").ratio, rel=0.05)


def test_statistics_of_few_updates_are_uncertain(trained):
    """They are older than weights that move: what is measured with them is another ratio."""
    model = copy.deepcopy(trained)
    assert predict(model, shape=(3, 10, 10)).layer("5").confidence == "high"
    for count, expected in ((300, "medium"), (5000, "high"), (0, "high")):  # 0: the count has been lost
        model[5].num_batches_tracked.fill_(count)
        assert predict(model, shape=(3, 10, 10)).layer("5").confidence == expected
        assert predict(model, images()).layer("5").confidence == "high"  # real data do without them


@pytest.mark.parametrize(("p", "expected"), [(0.05, "high"), (0.2, "medium"), (0.6, "low")])
def test_drift_along_the_depth_is_uncertain(p, expected):
    """What norms upstream add to a shift is wrong by as much as they are; a norm of its own is not."""
    torch.manual_seed(0)
    blocks = [
        (nn.Conv2d(8 if block else 3, 8, 3, padding=1), nn.Dropout(p), nn.BatchNorm2d(8))
        for block in range(4)
    ]
    model = learned(nn.Sequential(*(layer for block in blocks for layer in block)), images)
    layers = predict(model, shape=(3, 10, 10)).layers
    assert layers[0].confidence == "high"
    assert layers[-1].confidence == expected, layers[-1]


def test_ratios_count_eps():
    """A signal far below eps cannot be sick: the norm divides by the root of variance and eps."""
    ratios = {}
    for eps in (1e-12, 1e-5, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8, eps=eps, momentum=None))
        with torch.no_grad():
            model[0].weight.mul_(1e-3)
            model[0].bias.zero_()
        for _ in range(20):
            model(torch.randn(32, 3, 10, 10))
        layer = predict(model, shape=(3, 10, 10)).layer("2")
        ratios[eps] = layer.ratio
        learned = float(model[2].running_var.mean())
        assert layer.ratio == pytest.approx((layer.states["eval"].variance + eps) / (learned + eps), rel=1e-4)
    assert ratios[1e-12] == pytest.approx(0.5, abs=0.02)
    assert ratios[1e-12] < ratios[1e-5] < ratios[1.0]
    assert ratios[1.0] == pytest.approx(1, abs=1e-4)


def test_all_states_are_named_and_fit_together(trained):
    for prediction in (predict(trained, shape=(3, 10, 10)), predict(trained, images())):
        for layer in prediction.layers:
            states = layer.states
            assert set(states) == {"train", "clean", "sampling", "eval"}
            figures = {"eval": layer.ratio, "clean": layer.local_ratio}
            learned = states["train"].variance + EPS
            for state, ratio in figures.items():
                assert ratio == pytest.approx((states[state].variance + EPS) / learned)
            assert layer.shift == max(layer.ratio, 1 / layer.ratio)
        assert prediction.layer("1").noise == ()
        assert prediction.layer("1").ratio == pytest.approx(1, abs=1e-4)
        assert prediction.layer("5").noise == (SiteId("3", "dropout"),)
        assert str(prediction).count("\n") >= 2


def test_anchored_knows_the_running_statistics(trained):
    layer = predict(trained, shape=(3, 10, 10)).layer("5")
    assert layer.states["train"].variance == pytest.approx(float(trained[5].running_var.mean()), rel=1e-5)
    assert layer.states["train"].mean == pytest.approx(float(trained[5].running_mean.mean()), rel=1e-5)


def test_agrees_with_measurement(trained):
    batches = [images() for _ in range(16)]
    model = copy.deepcopy(trained)
    vs.recalibrate(model, batches, noise=True)
    measured = vs.check(model, batches).layer("5")
    for prediction in (predict(model, shape=(3, 10, 10)), predict(model, batches)):
        assert prediction.layer("5").ratio == pytest.approx(measured.ratio, rel=0.02)
        assert prediction.layer("5").local_ratio == pytest.approx(measured.local_ratio, rel=0.02)


def agrees_with_check(model, batch, norm, *, batches, rel):
    """A norm of a network whose statistics are learned with noise, predicted and measured."""
    vs.recalibrate(model, [batch] * 32, noise=True)
    measured = vs.check(model, [batch] * batches).layer(norm)
    predicted = predict(model, batch).layer(norm)
    assert predicted.local_ratio == pytest.approx(measured.local_ratio, rel=rel)
    assert predicted.ratio == pytest.approx(measured.ratio, rel=rel)


def _put(x, keep):
    y = x.clone()
    y[~keep.expand_as(x)] = 0
    return y / 0.7


HAND_WRITTEN = {
    "truth values": lambda x, keep: x * keep / 0.7,
    "not scaled up": lambda x, keep: x * keep,
    "whole numbers": lambda x, keep: x * keep.int() / 0.7,
    "where": lambda x, keep: torch.where(keep, x / 0.7, 0.0),
    "where not": lambda x, keep: torch.where(~keep, 0.0, x),
    "masked_fill": lambda x, keep: x.masked_fill(~keep, 0.0),
    "index": _put,
    "expanded": lambda x, keep: x * (keep.expand_as(x).float() / 0.7),
}


@pytest.mark.parametrize("form", HAND_WRITTEN)
@pytest.mark.parametrize("shared", [(), (2, 3), (1, 2, 3)], ids=["units", "channels", "samples"])
def test_masks_written_by_hand(form, shared):
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3)
            self.norm, self.last = nn.BatchNorm2d(12), nn.BatchNorm2d(12)

        def forward(self, x):
            x = F.relu(self.norm(self.first(x)))
            if self.training:
                sizes = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
                x = HAND_WRITTEN[form](x, torch.rand(sizes) > 0.3)
            return self.last(self.second(x))

    agrees_with_check(ByHand(), torch.randn(256, 3, 10, 10).cumsum(-1) / 2, "last", batches=8, rel=0.03)


def _floored(x, draw):
    return x / 0.7 * torch.floor(0.7 + draw)


def _floored_in_place(x, draw):
    random_tensor = 0.7
    random_tensor += draw
    return x.div(0.7) * random_tensor.floor_()


DROP_CONNECT = {
    "mask last": _floored,
    "in place": _floored_in_place,
    "mask first": lambda x, draw: torch.floor(0.7 + draw) * x / 0.7,
    "scaled mask": lambda x, draw: x * (torch.floor(draw + 0.7) / 0.7),
    "two products": lambda x, draw: x * torch.floor(0.7 + draw) * (1 / 0.7),
    "ceiling": lambda x, draw: x * torch.ceil(draw - 0.3) / 0.7,
    "comparison": lambda x, draw: x.div(0.7).mul((draw < 0.7).to(x.dtype)),
    "taken off": lambda x, draw: (x - x * torch.floor(draw + 0.3)) / 0.7,
}


@pytest.mark.parametrize("form", DROP_CONNECT)
def test_drop_connect_written_by_hand(form):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

        def forward(self, x):
            x = F.relu6(self.norms[0](self.first(x)))
            branch = self.norms[1](self.branch(x))
            if self.training:
                branch = DROP_CONNECT[form](branch, torch.rand(len(x), 1, 1, 1))
            return self.norms[2](self.last(x + branch))

    model = Residual()
    agrees_with_check(model, torch.randn(256, 3, 8, 8).cumsum(-1) / 2, "norms.2", batches=24, rel=0.03)
    prediction = predict(model, shape=(3, 8, 8))
    assert [layer.name for layer in prediction.layers] == ["norms.0", "norms.1", "norms.2"]
    assert prediction.layer("norms.2").ratio < 0.95


def test_a_dead_channel_costs_no_norm_its_prediction():
    """Trained networks have channels that are always 0: their running variance is 0 exactly."""
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        model[0].weight[2] = 0.0
        model[0].bias[2] = 0.0
    learned(model, images, batches=300)
    model[1].running_var[2] = model[1].running_mean[2] = 0.0
    alive = copy.deepcopy(model)
    prediction = predict(model, shape=(3, 10, 10))
    assert [layer.name for layer in prediction.layers] == ["1", "5"]
    alive[1].running_var[2] = 1e-12  # as good as dead, and no special number
    expected = predict(alive, shape=(3, 10, 10))
    for layer, other in zip(prediction.layers, expected.layers, strict=True):
        assert layer.ratio == pytest.approx(other.ratio, rel=1e-3)
        assert layer.mean_offset == pytest.approx(other.mean_offset, abs=1e-3)
        assert layer.confidence == other.confidence


def test_masks_that_drop_nothing_in_the_draw_that_was_looked_at():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)

        def forward(self, x):
            if self.training:
                x = x * (torch.rand(len(x), 1, 1, 1) > 1e-3)
            return self.norm(self.conv(x))

    model, batch = Rare(), torch.randn(64, 3, 10, 10).cumsum(-1)
    model(batch)
    kept = model.conv(batch).detach()
    noise = (1 - 1e-3) * 1e-3 * kept.square().mean((0, 2, 3))
    variance = (1 - 1e-3) ** 2 * kept.var((0, 2, 3), correction=0) + noise
    expected = float(noise.mean() / variance.mean())
    assert predict(model, batch).layer("norm").noise_share == pytest.approx(expected, rel=0.05)


def test_maxima_of_rectified_noise():
    """The noise in front of a max-pool is skew behind a rectifier, and a maximum asks for its upper tail."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(16, 16, 3)]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)]
    model = nn.Sequential(*layers)
    agrees_with_check(model, torch.randn(256, 3, 12, 12).cumsum(-1) / 2, "9", batches=4, rel=0.01)


def test_end_to_end_vector():
    """Two correlated inputs through two layers; variances exact to the error of a fine sample.

    The noise is one draw per element, so that its variance is known to about 1 / sqrt(values) where
    earlier noise is mixed in; here it is fresh, and the rest is the error of 2^16 quantile pairs.
    """
    bits = (
        torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(1 << 16).double().clamp(1e-9, 1 - 1e-9)
    )
    unit = 2**0.5 * torch.erfinv(2 * bits - 1)
    covariance = torch.tensor([[1, 0.4], [0.4, 0.5]]).double()
    inputs = torch.tensor([0.5, -0.3]).double() + unit @ torch.linalg.cholesky(covariance).T
    model = nn.Sequential(
        nn.Linear(2, 2, bias=False),
        nn.BatchNorm1d(2),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(2, 2, bias=False),
    )
    model.append(nn.BatchNorm1d(2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1, -0.5], [0.3, 0.8]]))
        model[1].weight.copy_(torch.tensor([1.2, 0.7]))
        model[1].bias.copy_(torch.tensor([0.1, -0.2]))
        model[4].weight.copy_(torch.tensor([[0.9, -0.6], [0.4, 1.1]]))
    from varshift.flow import capture
    from varshift.moments._clean_pass import CleanPass
    from varshift.moments._train_pass import TrainPass

    captured = capture(model, inputs, samples=len(inputs))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        train = TrainPass(captured.train, tensors, [inputs], made_up=False, trusted=frozenset())
        train.run()
        clean = CleanPass(captured.eval, tensors, [inputs], train.anchors, "running")
        clean.run()
    made, seen = train.anchors["5", 0], clean.observed["5", 0]
    assert made.channels_mean.tolist() == pytest.approx([0.36300258, 0.42179219], rel=1e-3)
    assert made.variance.tolist() == pytest.approx([0.66389216, 0.46130049], rel=1e-3)
    assert seen.variance.tolist() == pytest.approx([0.35552383, 0.32630542], rel=1e-3)
    ratio = seen.variance / made.variance
    assert ratio.tolist() == pytest.approx([0.53551442, 0.70735981], rel=1e-3)


def test_statistics_that_never_moved_are_said_to():
    prediction = predict(net(), shape=(3, 10, 10))
    assert prediction.layer("5").confidence == "low"
    assert any("not learned" in limit for limit in prediction.limits)
    assert 0 < prediction.layer("5").ratio < 1


def test_shared_norm():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.4)

        def forward(self, x):
            return self.norm(self.second(self.drop(F.relu(self.norm(self.first(x))))))

    model = learned(Shared(), lambda: torch.randn(64, 6))
    prediction = predict(model, torch.randn(256, 6))
    assert [layer.name for layer in prediction.layers] == ["norm"]
    assert prediction.layer("norm").noise == (SiteId("drop", "dropout"),)
    assert prediction.layer("norm").ratio < 1
    assert predict(model, shape=(6,)).layer("norm").ratio < 1.05


def test_norm_without_statistics_is_passed():
    model = nn.Sequential(nn.Dropout(0.3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU())
    model.append(nn.BatchNorm2d(3))
    learned(model, images)
    assert [layer.name for layer in predict(model, images()).layers] == ["3"]


def test_network_without_norms_or_without_noise():
    assert predict(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), shape=(4,)).layers == ()
    prediction = predict(learned(net(0.0), images), shape=(3, 10, 10))
    assert all(layer.ratio == pytest.approx(1, abs=1e-4) for layer in prediction.layers)
    assert prediction.rates == {}
    assert prediction.blame() == {}
    assert prediction.safe_rates() == {}


def test_inputs_by_name_integers_and_loaders():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.drop = nn.Embedding(50, 8), nn.Dropout(0.4)
            self.mix, self.norm = nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)

        def forward(self, tokens, scale=None):
            x = self.embed(tokens).transpose(1, 2)
            x = x if scale is None else x * scale[:, None, None]
            return self.norm(self.mix(self.drop(x)))

    def batch():
        return {"tokens": torch.randint(50, (32, 12)), "scale": torch.rand(32) + 0.5}

    torch.manual_seed(0)
    model = Words()
    model.train()
    for _ in range(60):
        given = batch()
        model(given["tokens"], given["scale"])
    loader = [batch() for _ in range(10)]
    copied = copy.deepcopy(model)
    vs.recalibrate(copied, loader, noise=True)
    measured = vs.check(copied, loader).layer("norm")
    prediction = predict(copied, loader)
    assert prediction.method == "hybrid"
    assert prediction.layer("norm").ratio == pytest.approx(measured.ratio, rel=0.03)
    assert predict(copied, loader, method="anchored").layer("norm").ratio == pytest.approx(
        measured.ratio, rel=0.05
    )
    pairs = [(given["tokens"], torch.zeros(32)) for given in loader]
    assert predict(model, pairs).layer("norm").ratio < 1
    assert predict(model, pairs[0][0]).layer("norm").ratio < 1


def test_network_whose_flow_depends_on_its_input():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net(0.3)

        def forward(self, x):
            return self.inner(x if float(x.sum()) < 1e9 else -x)

    model = learned(Deciding(), images)
    plain = predict(model.inner, images()[:16].repeat(4, 1, 1, 1))
    prediction = predict(model, images())
    assert prediction.layer("inner.5").ratio == pytest.approx(plain.layer("5").ratio, rel=0.1)


@library.custom_op("varshift_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    if not Odd.running:
        raise RuntimeError("only inside its module")
    return 2 * x


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


class Odd(nn.Module):
    running = False

    def __init__(self):
        super().__init__()
        self.before, self.after = net(0.3)[:2], net(0.3)[3:6]

    def forward(self, x):
        x = self.before(x)
        Odd.running = True
        try:
            x = doubled(x)
        finally:
            Odd.running = False
        return self.after(x)


def test_operation_that_cannot_be_run_is_named():
    model = learned(Odd(), images)
    prediction = predict(model, shape=(3, 10, 10))
    assert any("'doubled'" in limit for limit in prediction.limits)
    assert {layer.name for layer in prediction.layers} == {"before.1", "after.5"}
    layer = prediction.layer("after.5")
    assert (layer.ratio, layer.local_ratio, layer.mean_offset, layer.noise_share) == (None,) * 4
    assert (layer.shift, layer.confidence, dict(layer.states)) == (None, "none", {})
    assert "could not be followed" in layer.reason
    assert prediction.layer("before.1").ratio == pytest.approx(1, abs=1e-4)
    assert " -" in str(prediction)
    with pytest.raises(ValueError, match=r"'after\.5' has not been predicted"):
        prediction.safe_rates()
    assert all("after.5" not in shares for shares in prediction.blame().values())
    assert prediction.what_if({"after.3": 0.1}).layer("after.5").ratio is None
    handle = vs.recalibrate(model, shape=(3, 10, 10))
    assert "after.5" in handle.skipped


def test_frozen_norm_is_uncertain(trained):
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    model = learned(net(norm=Frozen), images)
    model[5].running_var.fill_(2.0)
    assert predict(model, shape=(3, 10, 10)).layer("5").confidence == "low"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype, trained):
    model = copy.deepcopy(trained).to(dtype)
    expected = predict(trained, shape=(3, 10, 10)).layer("5").ratio
    assert predict(model, shape=(3, 10, 10)).layer("5").ratio == pytest.approx(expected, rel=0.03)
    assert predict(model, images().to(dtype)).layer("5").ratio == pytest.approx(expected, rel=0.1)
    assert model[5].running_var.dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device(trained):
    model = copy.deepcopy(trained).cuda()
    state = torch.cuda.get_rng_state()
    expected = predict(trained, shape=(3, 10, 10)).layer("5").ratio
    prediction = predict(model, shape=(3, 10, 10))
    assert prediction.layer("5").ratio == pytest.approx(expected, rel=0.05)
    assert prediction == predict(model, shape=(3, 10, 10))
    assert predict(model, images()).layer("5").ratio == pytest.approx(expected, rel=0.1)
    vs.recalibrate(model, shape=(3, 10, 10)).undo()
    assert torch.equal(state, torch.cuda.get_rng_state())


def test_what_if_blame_and_safe_rates(trained):
    prediction = predict(trained, shape=(3, 10, 10))
    layer = prediction.layer("5")
    assert prediction.what_if({}).layer("5").ratio == pytest.approx(layer.ratio)
    ratios = [prediction.what_if({"3": rate}).layer("5").ratio for rate in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == pytest.approx(1, abs=1e-3)
    shares = prediction.blame()
    assert shares["3"]["5"] == pytest.approx(layer.ratio - 1)
    assert shares["3"]["1"] == 0
    safe = prediction.safe_rates(shift=1.2)
    assert 0 < safe["3"] < 0.5
    assert prediction.what_if(safe).layer("5").shift <= 1.2
    assert prediction.what_if({"3": safe["3"] * 1.1}).layer("5").shift > 1.2
    assert prediction.safe_rates(shift=100) == {SiteId("3", "dropout"): 0.5}


def test_several_shapes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.norm = nn.Linear(4, 6), nn.Linear(3, 6), nn.BatchNorm1d(6)

        def forward(self, x, y):
            return self.norm(F.dropout(self.left(x) + self.right(y), 0.4, self.training))

    model = learned(Two(), lambda: torch.randn(64, 4), lambda: torch.randn(64, 3))
    # Dropout directly in front: V = (1 + nu) v + nu M^2 with nu = 2/3.
    mean, variance = model.norm.running_mean, model.norm.running_var
    expected = float(((variance - mean.square() * 2 / 3) * 0.6).mean() / variance.mean())
    assert predict(model, shape=[(4,), (3,)]).layer("norm").ratio == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, vs.DataError, "neither data nor a shape"),
        ({"shape": 8}, ValueError, "shape=8"),
        ({"shape": (3, 0, 10)}, ValueError, "at least 1"),
        ({"shape": ()}, ValueError, "shape="),
        ({"shape": (3, 10.0, 10)}, ValueError, "shape="),
        ({"shape": (3, 10, 10), "method": "magic"}, ValueError, "method='magic'"),
        ({"shape": (3, 10, 10), "method": "hybrid"}, vs.DataError, "needs data"),
        ({"shape": (3, 10, 10), "seed": 1.5}, ValueError, "seed=1.5"),
        ({"shape": (4, 10, 10)}, vs.ModelError, "cannot be run"),
        ({"data": []}, vs.DataError, "yields nothing"),
        ({"data": 3}, vs.DataError, "data is a int"),
        ({"data": torch.randn(4, 3, 10, 10), "shape": (3, 10, 10)}, ValueError, "pass either"),
        ({"data": torch.full((4, 3, 10, 10), torch.nan)}, vs.DataError, "NaN"),
    ],
)
def test_bad_arguments(arguments, error, text, trained):
    with pytest.raises(error, match=text):
        predict(trained, **arguments)


def test_bad_rates(trained):
    with pytest.raises(vs.ModelError, match="model is a"):
        predict(torch.relu, shape=(3,))
    prediction = predict(trained, shape=(3, 10, 10))
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            prediction.what_if({"3": rate})
    with pytest.raises(ValueError, match=r"no noise site is called 'x': .* '3:dropout'"):
        prediction.what_if({"x": 0.1})
    with pytest.raises(ValueError, match="shift"):
        prediction.safe_rates(shift=1.0)
    with pytest.raises(KeyError, match="no norm is called"):
        prediction.layer("x")


@pytest.mark.parametrize("name", ["_predict", "_prediction"])
def test_examples_run(name):
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(f"varshift.moments.{name}"))
    assert result.attempted
    assert not result.failed


class Twice(nn.Module):
    """Two calls of a function in one line have two names."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.norm = nn.Linear(6, 8), nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(0.3), nn.BatchNorm1d(8)

    def forward(self, x):
        x = F.dropout(self.left(x), 0.2, self.training) + F.dropout(self.right(x), 0.4, self.training)
        return self.last(self.drop(self.norm(x)))


def test_noise_sites_go_by_id_text_and_module():
    prediction = predict(learned(Twice(), lambda: torch.randn(64, 6)), shape=(6,))
    first, second, drop = SiteId("", "dropout"), SiteId("", "dropout", 2), SiteId("drop", "dropout")
    assert prediction.rates == {first: 0.2, second: 0.4, drop: 0.3}
    assert prediction.layer("norm").noise == (first, second)
    assert prediction.rates[":dropout#2"] == prediction.rates[second] == 0.4
    assert prediction.rates["drop"] == 0.3
    louder = prediction.what_if({":dropout#2": 0.6})
    assert louder.rates == {first: 0.2, second: 0.6, drop: 0.3}
    assert louder == prediction.what_if({second: 0.6})
    assert louder.layer("norm").ratio < prediction.layer("norm").ratio
    shares = prediction.blame()
    assert shares[second]["norm"] < shares[first]["norm"] < 0
    assert shares["drop"]["norm"] == 0
    assert set(prediction.safe_rates(1.05)) == {first, second, drop}
    for error, rates in [
        ("several noise sites: ':dropout', ':dropout#2'", {"": 0.1}),
        ("no noise site is called 'norm'", {"norm": 0.1}),
        ("'drop:dropout' is given twice", {"drop": 0.1, drop: 0.2}),
    ]:
        with pytest.raises(ValueError, match=error):
            prediction.what_if(rates)
    with pytest.raises(KeyError, match="several noise sites"):
        shares[""]


def test_answers_are_for_the_weights_that_were_predicted(trained):
    model = copy.deepcopy(trained)
    prediction = predict(model, shape=(3, 10, 10))
    expected = predict(trained, shape=(3, 10, 10)).what_if({"3": 0.1}, exact=True)
    model[1].running_var.mul_(3)  # statistics are the prediction's own
    model[4].weight.data = model[4].weight.data.mul(2)  # other memory
    assert prediction.what_if({"3": 0.1}, exact=True) == expected
    again = predict(model, shape=(3, 10, 10))
    model[4].weight.data.mul_(2)
    with pytest.raises(vs.ModelError, match=r"'4.weight' has changed"):
        again.what_if({"3": 0.1})


class Renamed(nn.Module):
    """A batch norm whose statistics go by other names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("moving_mean", torch.zeros(8))
        self.register_buffer("moving_var", torch.ones(8))

    def forward(self, x):
        return torch.nn.functional.batch_norm(
            x, self.moving_mean, self.moving_var, training=self.training, momentum=0.1
        )


class Held(nn.Module):
    """A batch norm whose statistics are plain attributes."""

    def __init__(self):
        super().__init__()
        self.moving_mean, self.moving_var = torch.zeros(8), torch.ones(8)

    forward = Renamed.forward


class Manual(Renamed):
    """The same in several operations."""

    def forward(self, x):
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            with torch.no_grad():
                self.moving_mean.lerp_(mean, 0.1)
                self.moving_var.lerp_(var, 0.1)
        else:
            mean, var = self.moving_mean, self.moving_var
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()


def test_a_norm_of_several_operations_has_no_figures():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), Manual())
    learned(model, images)
    layer = predict(model, shape=(3, 10, 10)).layer("3")
    assert (layer.ratio, layer.confidence) == (None, "none")
    assert "not one batch-norm operation" in layer.reason


@pytest.mark.parametrize("other", [Renamed, Held])
def test_statistics_held_in_another_way_are_anchors_too(other):
    def net(norm):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), norm)

    plain, renamed = net(nn.BatchNorm2d(8)), net(other())
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(50):
            plain(torch.randn(16, 3, 8, 8))
    plain[3].num_batches_tracked.fill_(2000)  # the other does not count
    renamed[3].moving_mean.copy_(plain[3].running_mean)
    renamed[3].moving_var.copy_(plain[3].running_var)
    expected, layer = (predict(each, shape=(3, 8, 8)).layer("3") for each in (plain, renamed))
    assert layer.confidence == expected.confidence == "high"
    assert layer.ratio == pytest.approx(expected.ratio, rel=1e-5)


class Gated(nn.Module):
    """A signal times a gate, a mask, a function of itself, learned numbers per channel, or nothing."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.gate = kind, nn.Conv2d(8, 8, 1)
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 8, 1)
        self.drop, self.norm = nn.Dropout2d(0.2), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.drop(F.relu(self.first(x)))
        if self.kind == "gate":
            x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        elif self.kind == "path" and self.training:
            x = x * (torch.rand(len(x), 1, 1, 1) < 0.5)
        elif self.kind == "square":
            x = x * torch.sigmoid(x)
        elif self.kind == "number":
            x = x * self.gate.bias[:, None, None]
        return self.norm(self.second(x))


@pytest.mark.parametrize("kind", ["gate", "path", "number", "square", "none"])
def test_gates_need_more_samples(kind):
    """A gate has one value per sample, and of few samples nobody can tell what gates do."""
    net = Gated(kind)
    net(torch.randn(16, 3, 224, 224))
    prediction = predict(net, shape=(3, 224, 224))
    assert len(prediction._source.inputs[0]) == (24 if kind == "gate" else 3)
    # The mask of "path" is not scaled: the mean moves by a third of a deviation, which is uncertain, too.
    assert (prediction.layer("norm").confidence == "low") == (kind == "path")
    assert len(predict(net, torch.randn(32, 3, 224, 224))._source.inputs[0]) == (24 if kind == "gate" else 12)
    few = predict(net, torch.randn(8, 3, 64, 64), method="anchored")
    assert (few.layer("norm").confidence == "low") == (kind in ("gate", "path"))


def test_more_variance_than_was_learned_is_not_to_be_relied_upon():
    """Noise that drowns the signal in front of an operation without a rule, and an average of many."""

    class Drowned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            self.norm, self.other, self.drop = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Dropout(0.5)

        def forward(self, x):
            x = self.drop(5 * self.first(x))
            return self.other(self.last(self.norm(F.avg_pool2d(torch.softmax(x, 1), 4))))

    model = Drowned()
    vs.recalibrate(model, [torch.randn(64, 3, 14, 14).cumsum(-1)] * 4, noise=True)
    prediction = predict(model, shape=(3, 14, 14))
    assert prediction.layer("norm").local_ratio > 1.3
    assert [layer.confidence for layer in prediction.layers] == ["low", "low"]


def test_attention_of_made_up_inputs_is_not_to_be_relied_upon():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.qkv = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 24)
            self.drop, self.norm = nn.Dropout(0.2), nn.BatchNorm1d(8)

        def forward(self, x):
            x = self.drop(self.embed(x).flatten(2).transpose(1, 2))
            query, key, value = self.qkv(x).chunk(3, -1)
            return self.norm((torch.softmax(query @ key.transpose(1, 2), -1) @ value).transpose(1, 2))

    model, batch = Tokens(), torch.randn(64, 3, 16, 16).cumsum(-1)
    model(batch)
    assert predict(model, shape=(3, 16, 16)).layer("norm").confidence == "low"
    assert predict(model, batch).layer("norm").confidence == "medium"


@pytest.mark.parametrize("samples", ["one", "all"])
def test_noise_that_a_whole_batch_shares_is_not_to_be_relied_upon(samples):
    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            branch = F.relu(self.conv(x))[:, :3]
            if self.training:
                shape = [len(x) if samples == "one" else 1, 1, 1, 1]
                branch = branch * torch.empty(shape).bernoulli_(0.7) / 0.7
            return self.norm(x + branch)

    model = learned(Depth(), lambda: torch.randn(32, 3, 10, 10).cumsum(-1))
    layer = predict(model, shape=(3, 10, 10)).layer("norm")
    assert (layer.confidence == "low") == (samples == "all")
