"""Batch Kalman norm: the battery, the chain from layer to layer, its gradients, and two processes."""

import copy
import functools

import pytest
import torch
from hypothesis import strategies as st
from layer_tester import LayerTester
from torch import nn

from varshift.functional import KalmanState, add_kalman_states, batch_kalman_norm, conv_moments
from varshift.nn import BatchKalmanNorm1d, BatchKalmanNorm2d, ScaledStdConv2d


def plain(x, layer, prediction=None, p=0.9):
    """The equation written plainly, in training."""
    axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
    mean = x.mean(axes)
    var = ((x - mean.view(shape)) ** 2).mean(axes)
    if prediction is not None:
        gap = mean - prediction.mean
        var = p * prediction.var + (1 - p) * var + p * (1 - p) * gap**2
        mean = p * prediction.mean + (1 - p) * mean
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
    scaled = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    return weight.view(shape) * scaled + bias.view(shape)


class HeadOfChain(LayerTester):
    """Without a state, as at the head of a chain."""

    shape = (4, 6, 3, 3)
    remembers = True
    batch_dependent = True

    def reference(self, layer, x):
        return plain(x, layer)


class TestBatchKalmanNorm2d(HeadOfChain):
    def make(self, **factory):
        return BatchKalmanNorm2d(6, **factory)

    def peer(self):
        return nn.BatchNorm2d(6)


class TestBatchKalmanNorm1d(HeadOfChain):
    shape = (3, 6, 8)

    def make(self, **factory):
        return BatchKalmanNorm1d(6, momentum=None, **factory)

    def peer(self):
        return nn.BatchNorm1d(6)


class TestVectors(HeadOfChain):
    shape = (6, 4)

    def make(self, **factory):
        return BatchKalmanNorm1d(4, affine=False, transition="none", **factory)

    def peer(self):
        return nn.BatchNorm1d(4, affine=False)


class TestSplits(HeadOfChain):
    """Statistics of slices of the batch."""

    def make(self, **factory):
        return BatchKalmanNorm2d(6, splits=2, **factory)

    def reference(self, layer, x):
        return torch.cat([plain(part, layer) for part in x.chunk(2)])

    def shapes(self):
        batches = st.integers(1, 3).map(lambda half: 2 * half)
        return st.tuples(batches, st.just(6), st.integers(2, 4), st.integers(1, 4))

    def test_training_equals_evaluation_without_noise(self):
        pytest.skip("slices are normalised each by itself in training, together in evaluation")


class Predicted(nn.Module):
    """A norm that is given a state, as inside a chain; the state depends on parameters."""

    def __init__(self, **factory):
        super().__init__()
        self.between = nn.Conv2d(3, 6, 1, **factory)
        self.mean = nn.Parameter(torch.empty(1, 3, **factory))
        self.log_var = nn.Parameter(torch.empty(1, 3, **factory))
        self.norm = BatchKalmanNorm2d(
            6, prediction_weight=0.6, learn_prediction_weight=True, splits=2, **factory
        )
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.mean)
        nn.init.zeros_(self.log_var)
        nn.init.constant_(self.between.weight, 0.5)
        nn.init.constant_(self.between.bias, 0.1)
        self.norm.reset_parameters()

    def extra_repr(self):
        return "predicted"

    def forward(self, x):
        precision = torch.promote_types(x.dtype, torch.float32)
        state = KalmanState(self.mean.to(precision), self.log_var.to(precision).exp())
        y, (mean, var) = self.norm(x, state, self.between)
        # What the next norm would do with the state, so that gradients arrive there too.
        rows = len(x) // len(mean)
        offset = (mean - var).repeat_interleave(rows, 0)[:, :, None, None].to(y.dtype)
        return torch.add(y, offset)


class TestInsideAChain(LayerTester):
    shape = (4, 6, 3, 3)
    batch_dependent = True

    def make(self, **factory):
        return Predicted(**factory)

    def reference(self, layer, x):
        state = KalmanState(layer.mean[0], layer.log_var[0].exp())
        prediction = conv_moments(state, layer.between.weight, layer.between.bias)
        p = torch.sigmoid(layer.norm.weight_logit)
        out = []
        predicted = prediction
        for part in x.chunk(2):
            prediction = predicted
            mean, var = part.mean((0, 2, 3)), part.var((0, 2, 3), correction=0)
            if (prediction.var / var).mean() >= 100:
                prediction = KalmanState(mean, var)
            mixed = p * prediction.mean + (1 - p) * mean
            mixed_var = p * prediction.var + (1 - p) * var + p * (1 - p) * (mean - prediction.mean) ** 2
            offset = (mixed - mixed_var)[:, None, None]
            out.append(plain(part, layer.norm, prediction, p) + offset)
        return torch.cat(out)

    def shapes(self):
        batches = st.integers(1, 3).map(lambda half: 2 * half)
        return st.tuples(batches, st.just(6), st.integers(2, 4), st.integers(1, 4))

    def test_training_equals_evaluation_without_noise(self):
        pytest.skip("evaluation takes no prediction")


class Chain(nn.Module):
    """Two norms with a convolution between them."""

    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.first = BatchKalmanNorm2d(4, **{**options, "transition": "none"})
        self.between = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.second = BatchKalmanNorm2d(6, **options)

    def forward(self, x, state=None):
        y, state = self.first(self.stem(x), state)
        return self.second(self.between(torch.relu(y)), state, self.between)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_chain_is_its_equations():
    torch.manual_seed(0)
    net, x = Chain(prediction_weight=0.7).double(), draw(4, 3, 6, 6)
    y, state = net(x)
    front = net.stem(x)
    first = KalmanState(front.mean((0, 2, 3)), front.var((0, 2, 3), correction=0))
    signal = net.between(torch.relu(plain(front, net.first)))
    prediction = conv_moments(first, net.between.weight)
    torch.testing.assert_close(y, plain(signal, net.second, prediction, 0.7), rtol=1e-10, atol=1e-11)
    mean = 0.7 * prediction.mean + 0.3 * signal.mean((0, 2, 3))
    torch.testing.assert_close(state.mean[0], mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.second.running_mean, 0.1 * mean.detach(), rtol=1e-10, atol=1e-12)
    var = 0.9 + 0.1 * state.var[0].detach()
    torch.testing.assert_close(net.second.running_var, var, rtol=1e-10, atol=1e-12)


def test_gradients_flow_along_the_chain():
    torch.manual_seed(0)
    net = Chain(prediction_weight=0.5, learn_prediction_weight=True).double()
    x = draw(4, 3, 4, 4).requires_grad_()

    def run(x, *_):
        y, state = copy_free(net)(x)
        return y, state.mean, state.var

    assert torch.autograd.gradcheck(run, (x, *net.parameters()), atol=1e-6)


def copy_free(net):
    """The net with its running statistics put back after the pass, which finite differences need."""

    def run(x):
        kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
        out = net(x)
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(kept[name])
        return out

    return run


def test_a_detached_state_carries_no_gradient():
    for detach in (False, True):
        torch.manual_seed(0)
        first = BatchKalmanNorm2d(3, detach_state=detach).double()
        _, state = first(draw(2, 3, 4, 4).requires_grad_())
        assert state.mean.requires_grad is not detach
        assert state.var.requires_grad is not detach


def test_the_state_behind_the_affine_map():
    norm = BatchKalmanNorm2d(3, state_source="post-affine", splits=2).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    _, state = norm(draw(4, 3, 2, 2))
    assert state.mean.tolist() == [norm.bias.tolist()] * 2
    assert state.var.tolist() == [[4.0, 1.0, 0.25]] * 2
    _, state = BatchKalmanNorm2d(3, state_source="post-affine", affine=False).double()(draw(4, 3, 2, 2))
    assert state.mean.tolist() == [[0.0] * 3]
    assert state.var.tolist() == [[1.0] * 3]


def test_behind_a_join_the_state_is_the_prediction():
    norm, x = BatchKalmanNorm2d(3, transition="identity", prediction_weight=0.4).double(), draw(2, 3, 4, 4)
    one = KalmanState(draw(1, 3, seed=3), draw(1, 3, seed=4).square())
    state = add_kalman_states(one, one)
    y, _ = norm(x, state)
    expected = plain(x, norm, KalmanState(2 * one.mean[0], 2 * one.var[0]), 0.4)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_without_transition_the_state_is_ignored():
    norm, x = BatchKalmanNorm2d(3, transition="none").double(), draw(2, 3, 4, 4)
    y, _ = norm(x, KalmanState(torch.ones(1, 7), torch.ones(1, 7)))
    torch.testing.assert_close(y, plain(x, norm), rtol=1e-10, atol=1e-12)


def test_the_sampled_transition_takes_the_size_in_front_of_the_stride(monkeypatch):
    import varshift.nn._kalman_transition as module

    seen = []
    real = module.conv_sample_moments

    def spy(state, weight, size, *rest):
        seen.append(size)
        return real(state, weight, size, *rest)

    monkeypatch.setattr(module, "conv_sample_moments", spy)
    torch.manual_seed(0)
    net = Chain(transition="conv-sample")
    x = draw(4, 3, 8, 6, dtype=torch.float32)
    one, other = net(x)[0], net(x)[0]
    assert seen == [(8, 6), (8, 6)]
    assert not torch.equal(one, other)
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])
    assert len(seen) == 2


def test_a_learned_transition():
    square, wide = (BatchKalmanNorm1d(4, transition="linear", previous_features=n) for n in (None, 6))
    assert torch.equal(square.transition.matrix, torch.eye(4))
    assert wide.transition.matrix.shape == (4, 6)
    torch.testing.assert_close(
        nn.functional.softplus(wide.transition.noise), torch.full((4,), 0.01), rtol=1e-5, atol=0
    )
    x = draw(8, 4, dtype=torch.float32)
    y, _ = wide(x, KalmanState(torch.zeros(1, 6), torch.ones(1, 6)))
    y.square().sum().backward()
    assert wide.transition.matrix.grad.abs().sum() > 0
    assert wide.transition.noise.grad.abs().sum() > 0


def test_a_linear_layer_between():
    first, between, second = BatchKalmanNorm1d(4), nn.Linear(4, 3), BatchKalmanNorm1d(3)
    y, state = first(draw(8, 4, dtype=torch.float32))
    _, through_layer = second(between(torch.relu(y)), state, between)
    bare = conv_moments(state, between.weight, between.bias)
    _, by_hand = batch_kalman_norm(between(torch.relu(y)), bare)
    torch.testing.assert_close(through_layer.mean, by_hand.mean)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_momentum_is_torchs(momentum):
    ours, theirs = BatchKalmanNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    for seed in range(3):
        x = draw(50, 3, seed=seed, dtype=torch.float32)
        ours(x)
        theirs(x)
    assert int(ours.num_batches_tracked) == 3
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0.03, atol=0)


def test_the_chain_compiles_and_exports():
    torch.manual_seed(0)
    torch.compiler.reset()
    net, x = Chain(learn_prediction_weight=True), draw(4, 3, 6, 6, dtype=torch.float32)
    expected = copy.deepcopy(net)(x)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    for actual in (compiled(x), torch.export.export(copy.deepcopy(net), (x,), strict=False).module()(x)):
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(actual[1].var, expected[1].var, rtol=1e-4, atol=1e-5)


def test_the_chain_compiles_under_autocast():
    torch.manual_seed(0)
    torch.compiler.reset()
    net, x = Chain(), draw(4, 3, 6, 6, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y, state), (out, own) = net(x), compiled(x)
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(own.var, state.var)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_chain_exports_for_any_batch_and_extent(training):
    torch.manual_seed(0)
    net = Chain().train(training)
    sizes = {"x": {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}, "state": None}
    example = (draw(4, 3, 8, 6, dtype=torch.float32), None)
    exported = torch.export.export(copy.deepcopy(net), example, dynamic_shapes=sizes, strict=False)
    x = draw(7, 3, 12, 6, dtype=torch.float32)
    expected = net(x)[0]
    torch.testing.assert_close(exported.module()(x, None)[0], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients():
    torch.manual_seed(0)
    net, x = Chain(prediction_weight=0.6).double(), draw(1, 3, 6, 6).requires_grad_()
    run = copy_free(net)
    torch.autograd.gradgradcheck(lambda x: run(x)[0].square().mean((2, 3)), (x,), atol=1e-5, rtol=1e-3)


def test_a_state_crosses_a_compiled_boundary():
    torch.compiler.reset()
    norm, x = BatchKalmanNorm2d(3, transition="identity"), draw(4, 3, 2, 2, dtype=torch.float32)
    state = KalmanState(torch.zeros(1, 3), torch.ones(1, 3))
    compiled = torch.compile(copy.deepcopy(norm), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(copy.deepcopy(norm), (x, state), strict=False).module()
    expected = norm(x, state)
    for run in (compiled, exported):
        y, own = run(x, state)
        torch.testing.assert_close(y, expected[0])
        torch.testing.assert_close(own.mean, expected[1].mean)


def test_autocast_leaves_moments_in_full_precision():
    torch.manual_seed(0)
    net, x = Chain(), draw(4, 3, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = net(x)
    assert state.mean.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net.between.weight.grad.dtype == torch.float32


def test_the_weight_that_counts_is_the_one_the_layer_uses():
    torch.manual_seed(0)
    between, norm = ScaledStdConv2d(4, 3, 3, padding=1), BatchKalmanNorm2d(3)
    x, state = draw(2, 4, 5, 5, dtype=torch.float32), KalmanState(torch.zeros(1, 4), torch.ones(1, 4))
    _, own = norm(between(x), state, between)
    prediction = conv_moments(state, between.effective_weight(), between.bias)
    _, expected = batch_kalman_norm(between(x), prediction)
    torch.testing.assert_close(own.var, expected.var)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_agrees_with_the_processor_on_an_accelerator(layout):
    torch.manual_seed(0)
    net = Chain(learn_prediction_weight=True, prediction_weight=0.6, splits=2).double()
    start = copy.deepcopy(net.state_dict())
    x = draw(4, 3, 10, 8).to(memory_format=layout)
    y, state = net(x)
    y.pow(3).sum().backward()
    expected = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    other = Chain(learn_prediction_weight=True, prediction_weight=0.6, splits=2).double()
    other.load_state_dict(start)
    other.cuda()
    out, own = other(x.cuda())
    out.pow(3).sum().backward()
    torch.testing.assert_close(out.cpu(), y, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(own.var.cpu(), state.var, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(other.second.running_var.cpu(), net.second.running_var)
    gradients = [parameter.grad for parameter in other.parameters() if parameter.grad is not None]
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-7, atol=1e-8)


def rank_gradients(rank, world, path):
    """One rank of a data-parallel step; rank 0 writes the gradients."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=world)
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(Chain(prediction_weight=0.6))
    x = draw(8, 3, 6, 6, dtype=torch.float32).chunk(world)[rank]
    y, _ = net(x)
    y.pow(3).mean().backward()
    if rank == 0:
        state = {name: parameter.grad for name, parameter in net.module.named_parameters()}
        torch.save(state, f"{path}/gradients.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_ranks_are_two_splits(tmp_path):
    torch.multiprocessing.spawn(functools.partial(rank_gradients), args=(2, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    net = Chain(prediction_weight=0.6, splits=2)
    y, _ = net(draw(8, 3, 6, 6, dtype=torch.float32))
    y.pow(3).mean().backward()
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_refusals():
    x = torch.randn(4, 3, 2, 2)
    state = KalmanState(torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="must have 4 axes and 3 channels"):
        BatchKalmanNorm2d(3)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="must have 2 or 3 axes"):
        BatchKalmanNorm1d(3)(x)
    with pytest.raises(ValueError, match="layer=None must be the convolution"):
        BatchKalmanNorm2d(3)(x, state)
    with pytest.raises(ValueError, match="must be the convolution"):
        BatchKalmanNorm2d(3)(x, state, nn.ConvTranspose2d(3, 3, 2))
    with pytest.raises(ValueError, match="layer gives 5 channels"):
        BatchKalmanNorm2d(3)(x, state, nn.Conv2d(3, 5, 1))
    with pytest.raises(ValueError, match="transition='magic'"):
        BatchKalmanNorm2d(3, transition="magic")
    with pytest.raises(ValueError, match="previous_features=4 is for"):
        BatchKalmanNorm2d(3, previous_features=4)
    with pytest.raises(ValueError, match="inside"):
        BatchKalmanNorm2d(3, prediction_weight=0, learn_prediction_weight=True)
    for name, value in {
        "prediction_weight": -0.1,
        "state_source": "cooked",
        "splits": 0,
        "eps": -1e-5,
        "momentum": 2.0,
        "guard": 0.0,
    }.items():
        with pytest.raises(ValueError, match=f"{name}="):
            BatchKalmanNorm2d(3, **{name: value})
    with pytest.raises(ValueError, match="num_features="):
        BatchKalmanNorm2d(0)
