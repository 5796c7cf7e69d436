"""Frozen batch norm, and freezing and unfreezing whole networks."""

import copy
import io
import pickle
from typing import ClassVar

import pytest
import torch
import torch.nn.utils.parametrize
from hypothesis import strategies as st
from layer_tester import LayerTester
from torch.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, Conv2d, Linear, ReLU, Sequential, SyncBatchNorm

import varshift as vs
from varshift import nn


def draw(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(norm, seed=10):
    """A norm that has seen data and learned something."""
    channels = norm.num_features
    with torch.no_grad():
        norm.running_mean.copy_(draw(channels, seed=seed))
        norm.running_var.copy_(0.5 + draw(channels, seed=seed + 1).square())
        norm.num_batches_tracked.fill_(7)
        if norm.weight is not None:
            norm.weight.copy_(draw(channels, seed=seed + 2))
            norm.bias.copy_(draw(channels, seed=seed + 3))
    return norm


class FrozenTester(LayerTester):
    shape = (3, 4, 3, 2)
    arguments: ClassVar = {"trainable": True}

    def make(self, **factory):
        return nn.FrozenBatchNorm(self.shape[1], **self.arguments, **factory)

    def peer(self):
        return BatchNorm2d(self.shape[1]).eval()

    def reference(self, layer, x):
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, var, weight, bias = (
            None if t is None else t.view(shape)
            for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        y = (x - mean) / (var + layer.eps).sqrt()
        return y if weight is None else weight * y + bias


class TestFrozen(FrozenTester):
    def shapes(self):
        extents = st.lists(st.integers(1, 4), max_size=3)
        return extents.map(lambda sizes: (3, self.shape[1], *sizes))


class TestFrozenBuffers(FrozenTester):
    arguments: ClassVar = {}


class TestFrozenWithoutScale(FrozenTester):
    shape = (4, 6)
    arguments: ClassVar = {"affine": False}


# ---------------------------------------------------------------------- the layer


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"), [(BatchNorm1d, (6, 4)), (BatchNorm2d, (3, 4, 5, 6)), (BatchNorm3d, (2, 4, 3, 2, 2))]
)
def test_is_batch_norm_in_evaluation(kind, shape, trainable):
    norm = settled(kind(4, dtype=torch.float64))
    frozen = nn.FrozenBatchNorm(4, trainable=trainable, dtype=torch.float64)
    frozen.load_state_dict(norm.state_dict())
    norm.eval()
    x, y = draw(*shape).requires_grad_(), draw(*shape).requires_grad_()
    assert torch.equal(frozen.train()(x), norm(y))
    (frozen(x).square()).sum().backward()
    (norm(y).square()).sum().backward()
    assert torch.equal(x.grad, y.grad)
    if trainable:
        assert torch.equal(frozen.weight.grad, norm.weight.grad)
        assert torch.equal(frozen.bias.grad, norm.bias.grad)
    else:
        assert not list(frozen.parameters())
    back = kind(4, dtype=torch.float64)
    back.load_state_dict(frozen.state_dict())
    assert all(torch.equal(value, norm.state_dict()[name]) for name, value in back.state_dict().items())


def test_training_moves_nothing():
    frozen = nn.FrozenBatchNorm.of(settled(BatchNorm2d(3)))
    before = copy.deepcopy(frozen.state_dict())
    frozen.train()(torch.randn(4, 3, 5, 5) + 5)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_loads_a_state_without_a_counter():
    state = settled(BatchNorm2d(3)).state_dict()
    del state["num_batches_tracked"]
    frozen = nn.FrozenBatchNorm(3)
    frozen.load_state_dict(state)
    assert torch.equal(frozen.running_var, state["running_var"])
    assert frozen.num_batches_tracked == 0
    with pytest.raises(RuntimeError, match="running_var"):
        frozen.load_state_dict({name: value for name, value in state.items() if name != "running_var"})


def test_bad_arguments():
    with pytest.raises(ValueError, match="eps=-1"):
        nn.FrozenBatchNorm(3, eps=-1)
    with pytest.raises(ValueError, match="num_features=0"):
        nn.FrozenBatchNorm(0)
    with pytest.raises(ValueError, match=r"shape \(2, 5\).*num_features=3"):
        nn.FrozenBatchNorm(3)(torch.ones(2, 5))
    with pytest.raises(ValueError, match="no running statistics"):
        nn.FrozenBatchNorm.of(BatchNorm2d(3, track_running_stats=False))


# ---------------------------------------------------------------------- networks


class Fused(BatchNorm2d):
    """A norm that does more than normalise, as in timm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(super().forward(x).relu())


class Renamed(BatchNorm2d):
    """A subclass that adds nothing."""


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Sequential(Conv2d(3, 4, 3), settled(BatchNorm2d(4), 20), ReLU())
        self.fused = settled(Fused(4), 30)
        self.shared = settled(Renamed(4), 40)
        self.again = torch.nn.ModuleDict({"twice": self.shared})
        self.renorm = settled(nn.BatchRenorm2d(4, clipping=nn.RenormClipping.fixed(3, 5)), 50)
        self.sync = settled(SyncBatchNorm(4), 60)
        self.untracked = BatchNorm2d(4, track_running_stats=False)
        self.head = Sequential(Linear(4, 4), settled(BatchNorm1d(4, affine=False, momentum=None), 70))

    def forward(self, x):
        x = self.renorm(self.again["twice"](self.shared(self.fused(self.stem(x)))))
        x = self.untracked(x)
        return self.head(x.mean((2, 3)))


def network():
    torch.manual_seed(0)
    return Network()


FROZEN = {
    "stem.1": "BatchNorm2d",
    "fused": "Fused",
    "shared": "Renamed",
    "renorm": "BatchRenorm2d",
    "sync": "SyncBatchNorm",
    "head.1": "BatchNorm1d",
}


def snapshot(model):
    """All that an exact undo has to bring back."""
    return (
        [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()],
        [(name, id(b), b.clone()) for name, b in model.named_buffers()],
        {name: sorted(module.__dict__) for name, module in model.named_modules()},
    )


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[3] == other[3]
    for before, after in zip([*one[1], *one[2]], [*other[1], *other[2]], strict=True):
        assert before[:-1] == after[:-1]
        assert torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_undo_is_exact(trainable, training):
    model = network().train(training)
    model.stem[1].eval()  # a flag of its own
    model.fused.weight.requires_grad_(False)
    before = snapshot(model)
    handle = nn.freeze_batch_norm_(model, trainable=trainable)
    assert dict(handle.layers) == FROZEN
    assert dict(handle.skipped) == {"untracked": "it has no running statistics"}
    assert "6 batch norms frozen; 'untracked' left alone" in repr(handle)
    assert nn.freeze_batch_norm_(model).layers == {}
    handle.undo()
    assert_same(before, snapshot(model))
    handle.undo()  # nothing left to do
    assert_same(before, snapshot(model))


def test_frozen_network_uses_its_statistics_and_moves_none():
    model = network()
    model.untracked = torch.nn.Identity()
    x = torch.randn(5, 3, 6, 6) * 3 + 1
    expected = copy.deepcopy(model).eval()(x)
    nn.freeze_batch_norm_(model)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model.fused.drop.eval()
    torch.testing.assert_close(model(x), expected)
    assert model.fused.drop.training is False
    model.train()
    assert model.fused.drop.training  # only the norm is pinned, not the noise inside it
    assert not model.fused.training
    assert not torch.equal(model(x), model(x))
    assert model.shared is model.again["twice"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"stem.0.weight", "stem.0.bias", "head.0.weight", "head.0.bias"}


def test_trainable_scales_stay_the_optimisers():
    model = network()
    model.untracked = torch.nn.Identity()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.freeze_batch_norm_(model, trainable=True)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randn(5, 3, 6, 6)).square().sum().backward()
    optimiser.step()
    for name in ("stem.1.weight", "fused.bias", "shared.weight", "renorm.bias"):
        assert not torch.equal(model.get_parameter(name), before[name]), name


def test_the_copy_leaves_the_original_alone():
    model = network()
    before = snapshot(model)
    frozen = nn.freeze_batch_norm(model)
    assert_same(before, snapshot(model))
    assert isinstance(frozen.stem[1], nn.FrozenBatchNorm)
    back = nn.unfreeze_batch_norm(frozen)
    assert isinstance(frozen.stem[1], nn.FrozenBatchNorm)
    assert [(name, type(m)) for name, m in back.named_modules()] == [
        (name, type(m)) for name, m in model.named_modules()
    ]
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert back.shared is back.again["twice"]
    assert back.head[1].momentum is None
    back.train()
    assert back.fused.training


def test_the_model_itself_may_be_a_norm():
    norm = settled(BatchNorm1d(4))
    frozen = nn.freeze_batch_norm(norm)
    assert isinstance(frozen, nn.FrozenBatchNorm)
    assert type(nn.unfreeze_batch_norm(frozen)) is BatchNorm1d
    handle = nn.freeze_batch_norm_(norm)  # has no parent in which something else could stand
    x = torch.randn(3, 4) + 2
    assert torch.equal(norm.train()(x), frozen(x))
    handle.undo()
    assert not torch.equal(norm.train()(x), frozen(x))


def test_hooks_work_on_and_their_handles_too():
    model, calls = network(), []
    forward = model.stem[1].register_forward_hook(lambda *_: calls.append("forward"))
    model.stem[1].register_forward_pre_hook(lambda *_, **__: calls.append("before"), with_kwargs=True)
    model.stem[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    handle = nn.freeze_batch_norm_(model)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    model.stem(x).sum().backward()
    assert calls == ["before", "forward", "backward"]
    forward.remove()
    later = model.stem[1].register_forward_hook(lambda *_: calls.append("later"))
    handle.undo()
    calls.clear()
    model.stem(x).sum().backward()
    assert calls == ["before", "later", "backward"]
    later.remove()
    assert not model.stem[1]._forward_hooks


@pytest.mark.parametrize("trainable", [False, True])
def test_what_happens_to_the_frozen_network_is_kept(trainable):
    model = network()
    weight = model.stem[1].weight
    nn.freeze_batch_norm_(model, trainable=trainable)
    model.to(torch.float64)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    copied = copy.deepcopy(model)
    for network_ in (model, copied):
        restored = nn.unfreeze_batch_norm_(network_)
        assert dict(restored) == FROZEN
        for name, value in network_.state_dict().items():
            assert value.dtype == state[name].dtype
            assert torch.equal(value, state[name]), name
        assert not any(module.training for module in network_.modules())
    assert model.stem[1].weight is weight


def test_frozen_networks_copy_pickle_and_save():
    model = nn.freeze_batch_norm(network()).train()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    network().load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 3, 6, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.train()
        assert not twin.fused.training
        assert torch.equal(twin.stem(x), model.stem(x))
        assert dict(nn.unfreeze_batch_norm_(twin)) == FROZEN
    assert not model.fused.training
    assert isinstance(model.stem[1], nn.FrozenBatchNorm)


def test_frozen_networks_compile_and_export():
    model = nn.freeze_batch_norm(network())
    model.untracked, model.fused.drop = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(3, 3, 6, 6)
    torch.compiler.reset()
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), model(x))


def test_layers_built_frozen_have_no_former_self():
    model = Sequential(nn.FrozenBatchNorm(3), BatchNorm2d(3))
    nn.freeze_batch_norm_(model)
    assert dict(nn.unfreeze_batch_norm_(model)) == {"1": "BatchNorm2d"}
    assert isinstance(model[0], nn.FrozenBatchNorm)


def test_a_lazy_norm_is_left_until_it_has_seen_an_input():
    model = Sequential(torch.nn.LazyBatchNorm2d())
    assert "not seen an input" in nn.freeze_batch_norm_(model).skipped["0"]


def test_device_dtype_and_settings_are_kept():
    model = Sequential(BatchNorm2d(3, eps=0.25, dtype=torch.float64), BatchNorm2d(3, device="meta"))
    model[0].eval()
    nn.freeze_batch_norm_(model)
    assert model[0].eps == 0.25
    assert model[0].running_var.dtype == model[0].weight.dtype == torch.float64
    assert not model[0].training
    assert model[1].training
    assert model[1].running_var.is_meta


def test_parametrized_norms_are_pinned_with_what_their_parameters_come_from():
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = Sequential(Conv2d(3, 4, 1), settled(BatchNorm2d(4)))
    torch.nn.utils.parametrize.register_parametrization(model[1], "weight", Doubled())
    x = torch.randn(4, 3, 5, 5)
    expected = copy.deepcopy(model).eval()(x)
    handle = nn.freeze_batch_norm_(model)
    assert torch.equal(model.train()(x), expected)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"0.weight", "0.bias"}
    handle.undo()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(model(x), expected)


def test_data_parallel_wrappers_come_after_freezing():
    class DistributedDataParallel(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    wrapped = DistributedDataParallel(network())
    with pytest.raises(ValueError, match="Freeze before wrapping"):
        nn.freeze_batch_norm_(wrapped)
    assert nn.freeze_batch_norm_(wrapped, trainable=True).layers


# ---------------------------------------------------------------------- seen by the checker


def checked():
    torch.manual_seed(0)
    model = Sequential(
        Conv2d(3, 4, 3), BatchNorm2d(4), ReLU(), torch.nn.Dropout(0.5), Conv2d(4, 4, 3), BatchNorm2d(4)
    )
    batches = [draw(8, 3, 9, 9, seed=seed).float() for seed in range(4)]
    vs.recalibrate(model, batches)
    return model, batches


def test_checker_sees_frozen_norms_as_norms_on_running_statistics():
    model, batches = checked()
    frozen = nn.freeze_batch_norm(model)
    live, report = vs.check(model, batches), vs.check(frozen, batches)
    assert [layer.name for layer in report.layers] == ["1", "5"] == [layer.name for layer in live.layers]
    assert [layer.cls for layer in report.layers] == ["FrozenBatchNorm"] * 2
    for one, other in zip(live.layers, report.layers, strict=True):
        assert other.ratio == pytest.approx(one.ratio, rel=1e-4)
    assert "VS207" not in {finding.code for finding in report.findings}


def test_stale_frozen_statistics_are_reported():
    model, batches = checked()
    model[1].running_var.mul_(4)
    report = vs.check(nn.freeze_batch_norm(model), batches)
    assert {(finding.code, finding.where) for finding in report.findings} >= {("VS202", "1")}


def test_recalibration_leaves_frozen_norms_alone_and_says_so():
    model, batches = checked()
    frozen = nn.freeze_batch_norm(model)
    frozen[1].running_var.mul_(4)
    before = copy.deepcopy(frozen.state_dict())
    handle = vs.recalibrate(frozen, batches)
    assert set(handle.skipped) == {"1", "5"}
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    nn.unfreeze_batch_norm_(frozen)
    assert not vs.recalibrate(frozen, batches).skipped
    torch.testing.assert_close(frozen[1].running_var, model[1].running_var)


@pytest.mark.zoo
def test_real_networks_freeze_and_thaw():
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    import timm

    model = timm.create_model("mobilenetv3_small_050", num_classes=5)
    for seed, module in enumerate(model.modules()):
        if isinstance(module, BatchNorm2d):
            module.running_mean.copy_(0.1 * draw(module.num_features, seed=seed))
            module.running_var.copy_(0.5 + draw(module.num_features, seed=seed + 1).square())
    x = torch.randn(2, 3, 64, 64)
    expected = copy.deepcopy(model).eval()(x)
    before = snapshot(model)
    handle = nn.freeze_batch_norm_(model)
    assert len(handle.layers) == sum(isinstance(m, BatchNorm2d) for m in model.modules())
    state = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(model.train()(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    handle.undo()
    assert_same(before, snapshot(model))
