"""Batch norm preconditioning against the page's vectors, its identities, and life in a training loop."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from varshift.optim import AdaptiveGradientClipping, BatchNormPreconditioner, precondition_gradients

H = torch.tensor([[1, 10, -0.5], [2, 30, 0.5], [4, 20, 0], [1, 0, 1]], dtype=torch.float64)
TARGET = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.float64)


def exact(**rest):
    """The preconditioner of this batch alone, without floors."""
    return {"decay": 0.0, "relative_eps": 0.0, "eps": 0.0, **rest}


@pytest.fixture
def dense():
    layer = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -0.02, 0.3], [0, 0.01, -0.4]]))
        layer.bias.copy_(torch.tensor([0.05, -0.1]))
        layer.weight.copy_(torch.tensor([[0.1, -0.02, 0.3], [0, 0.01, -0.4]], dtype=torch.float64))
        layer.bias.copy_(torch.tensor([0.05, -0.1], dtype=torch.float64))
    return layer


def backward(layer):
    loss = 0.5 * (torch.sigmoid(layer(H)) - TARGET).square().sum(1).mean()
    loss.backward()
    return loss.item()


VECTORS = {
    "a": (
        exact(),
        [
            [-0.042115157203, -0.000869906928, 0.215411396724],
            [-0.076955683954, -0.008957222118, -0.029729978893],
        ],
        [0.043105058736, 0.291041613409],
    ),
    "b": (
        {"decay": 0.0},
        [
            [-0.022971068617, -0.000861293306, 0.043079522255],
            [-0.041974301273, -0.008868529726, -0.005945615259],
        ],
        [0.047770645851, 0.213802371258],
    ),
    "c": (
        {"variance": "batch"},
        [
            [-0.062100570711, -0.050168119547, 0.066202201995],
            [-0.121325037765, -0.525464040924, -0.010283433552],
        ],
        [0.008280713437, 0.076611234481],
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_the_page(dense, name):
    arguments, weight, bias = VECTORS[name]
    preconditioner = BatchNormPreconditioner(dense, **arguments)
    assert backward(dense) == pytest.approx(0.2545006338217979, abs=1e-15)
    expected = [
        [-0.063814756614, -0.113553522035, 0.067235808875],
        [-0.124754687923, -1.18956147974, -0.010455763653],
    ]
    torch.testing.assert_close(dense.weight.grad, torch.tensor(expected).double(), atol=1e-11, rtol=1e-6)
    preconditioner.step()
    torch.testing.assert_close(
        dense.weight.grad, torch.tensor(weight, dtype=torch.float64), atol=1e-11, rtol=1e-10
    )
    torch.testing.assert_close(
        dense.bias.grad, torch.tensor(bias, dtype=torch.float64), atol=1e-11, rtol=1e-10
    )


def test_vector_d_divides_by_q2(dense):
    backward(dense)
    mean, variance = H.mean(0), H.var(0, correction=0)
    variance = variance + 1e-2 * variance.max() + 1e-4
    weight, bias = precondition_gradients(dense.weight.grad, dense.bias.grad, mean, variance, 1.5)
    expected = [
        [-0.015314045745, -0.000574195537, 0.028719681504],
        [-0.027982867515, -0.005912353151, -0.003963743506],
    ]
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64), atol=1e-11, rtol=1e-10)
    torch.testing.assert_close(
        bias, torch.tensor([0.031847097234, 0.142534914172], dtype=torch.float64), atol=1e-11, rtol=1e-10
    )


def test_running_statistics_after_one_step(dense):
    preconditioner = BatchNormPreconditioner(dense, variance="batch")
    backward(dense)
    preconditioner.step()
    torch.testing.assert_close(
        preconditioner.mean("0" if "0" in preconditioner.names else ""),
        torch.tensor([0.02, 0.15, 0.0025], dtype=torch.float64),
    )
    torch.testing.assert_close(
        preconditioner.variance(""), torch.tensor([1.005, 2.24, 0.993125], dtype=torch.float64)
    )


# ---------------------------------------------------------------- identities


@settings(max_examples=25, deadline=None)
@given(outputs=st.integers(1, 5), inputs=st.integers(1, 5), q2=st.floats(0.5, 4), seed=st.integers(0, 2**31))
def test_cheap_formula_equals_the_explicit_product(outputs, inputs, q2, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias, mean, variance = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((outputs, inputs), (outputs,), (inputs,), (inputs,))
    )
    variance = variance.square() + 0.1
    shear = torch.eye(inputs + 1, dtype=torch.float64)
    shear[0, 1:] = -mean
    scale = torch.diag(torch.cat([torch.ones(1, dtype=torch.float64), variance.rsqrt()])) / q2**0.5
    product = shear @ scale @ scale.T @ shear.T
    explicit = torch.cat([bias[:, None], weight], 1) @ product  # one unit per row; the product is symmetric
    new_weight, new_bias = precondition_gradients(weight, bias, mean, variance, q2)
    torch.testing.assert_close(new_weight, explicit[:, 1:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(new_bias, explicit[:, 0], rtol=1e-10, atol=1e-10)
    alone, none = precondition_gradients(weight, None, mean, variance, q2)
    assert none is None
    torch.testing.assert_close(alone, weight / (q2 * variance))


def test_neutral_statistics_are_the_identity():
    weight, bias = torch.randn(3, 4, 2, 2), torch.randn(3)
    same = precondition_gradients(weight, bias, torch.zeros(4), torch.ones(4))
    assert torch.equal(same[0], weight)
    assert torch.equal(same[1], bias)


def test_a_convolution_of_one_by_one_is_dense():
    weight, bias = torch.randn(3, 4).double(), torch.randn(3).double()
    mean, variance = torch.randn(4).double(), torch.rand(4).double()
    dense = precondition_gradients(weight, bias, mean, variance, 1.3)
    conv = precondition_gradients(weight[:, :, None, None], bias, mean, variance, 1.3)
    torch.testing.assert_close(conv[0].flatten(1), dense[0])
    torch.testing.assert_close(conv[1], dense[1])


LAYERS = {
    "dense": (lambda: nn.Linear(4, 3), (8, 4)),
    "dense with time": (lambda: nn.Linear(4, 3), (3, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (5, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (5, 4, 7, 6)),
    "stride and dilation": (lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2), (5, 4, 11, 12)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (5, 4, 7, 6)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (5, 4, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (4, 2, 4, 5, 3)),
    "one sample": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_equals_gradient_descent_on_a_normalised_input(name, last):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    axis = -1 if isinstance(layer, nn.Linear) else len(shape) - layer.weight.dim() + 1
    scales = torch.tensor([0.3, 2.0, 7.0, 1.0]).double()[: shape[axis]]
    view = [1] * len(shape)
    view[axis] = -1
    x = (torch.randn(shape, dtype=torch.float64) * scales.view(view)) + 3 * scales.flip(0).view(view)
    if last and x.dim() == 4:
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    axes = [a for a in range(len(shape)) if a != axis % len(shape)]
    mean, deviation = x.mean(axes, keepdim=True), x.std(axes, correction=0, keepdim=True)
    twin = copy.deepcopy(layer)
    with torch.no_grad():  # the same function of the normalised input
        groups = getattr(layer, "groups", 1)
        kind = layer.weight.unflatten(0, (groups, -1))
        spread = [groups, 1, -1] + [1] * (kind.dim() - 3)
        twin.weight.copy_((kind * deviation.view(spread)).flatten(0, 1))
        twin.bias.add_((kind * mean.view(spread)).flatten(2).sum(2).flatten())
    torch.testing.assert_close(twin((x - mean) / deviation), layer(x), rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(layer(x))
    preconditioner = BatchNormPreconditioner(layer, **exact(q_rows="none"))
    (layer(x).tanh() * weights).mean().backward()
    (twin((x - mean) / deviation).tanh() * weights).mean().backward()
    preconditioner.step()
    for net in (layer, twin):
        torch.optim.SGD(net.parameters(), lr=0.3).step()
    probe = torch.randn_like(x)
    torch.testing.assert_close(twin((probe - mean) / deviation), layer(probe), rtol=1e-10, atol=1e-10)


def test_the_same_with_a_running_mean_and_floors():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    preconditioner = BatchNormPreconditioner(layer, decay=0.9, q_rows="none")
    for _ in range(3):
        layer.zero_grad()
        x = 3 + 2 * torch.randn(16, 4).double()
        layer(x).square().mean().backward()
        raw = [parameter.grad.clone() for parameter in layer.parameters()]
        preconditioner.step()
    variance = preconditioner.variance("")
    floored = variance + 1e-2 * variance.max() + 1e-4
    expected = precondition_gradients(*raw, preconditioner.mean(""), floored)
    torch.testing.assert_close(layer.weight.grad, expected[0])
    torch.testing.assert_close(layer.bias.grad, expected[1])


@pytest.mark.parametrize(
    ("rule", "layer", "shape", "q2"),
    [
        ("positions", lambda: nn.Linear(12, 2), (3, 12), 4.0),
        ("batch", lambda: nn.Linear(12, 2), (3, 12), 4.0),
        ("none", lambda: nn.Linear(12, 2), (3, 12), 1.0),
        ("positions", lambda: nn.Linear(12, 2), (3, 2, 12), 2.0),
        ("batch", lambda: nn.Linear(12, 2), (3, 2, 12), 4.0),
        ("positions", lambda: nn.Conv2d(4, 2, 3), (2, 4, 4, 5), 36 / 12),
        ("batch", lambda: nn.Conv2d(4, 2, 3), (2, 4, 4, 5), 18.0),
        ("batch", lambda: nn.Conv2d(4, 2, 3, groups=2), (2, 4, 4, 5), 9.0),
        ("positions", lambda: nn.Linear(12, 2), (40, 12), 1.0),
    ],
)
def test_q2_counts_rows_against_the_fan_in(rule, layer, shape, q2):
    torch.manual_seed(0)
    grads = {}
    for name in (rule, "none"):
        torch.manual_seed(0)
        module = layer().double()
        preconditioner = BatchNormPreconditioner(module, q_rows=name)
        module(torch.randn(shape).double()).square().sum().backward()
        preconditioner.step()
        grads[name] = [
            module.weight.grad * (q2 if name == rule else 1),
            module.bias.grad * (q2 if name == rule else 1),
        ]
    torch.testing.assert_close(grads[rule], grads["none"])


@pytest.mark.parametrize("batch", [1, 2, 4, 16])
def test_the_variance_of_single_samples_is_not_lost(batch):
    """The table of the page: true variances .25, 4 and 9 at any batch size."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    preconditioner = BatchNormPreconditioner(layer)
    scale = torch.tensor([0.5, 2.0, 3.0])
    total, steps = torch.zeros(3, dtype=torch.float64), 0
    for step in range(3000):
        layer(1 + scale * torch.randn(batch, 3)).sum().backward()
        preconditioner.step()
        if step >= 1000:
            total += preconditioner.variance("")
            steps += 1
    torch.testing.assert_close(total / steps, scale.double().square(), rtol=0.08, atol=0)


def test_it_improves_the_conditioning_of_the_page():
    torch.manual_seed(0)
    offset, scale = torch.tensor([5.0, -2, 0, 20, 1]), torch.tensor([0.1, 1, 3, 10, 0.5])
    x = (offset + scale * torch.randn(200, 5)).double()
    padded = torch.cat([torch.ones(200, 1).double(), x], 1)
    mean, variance = x.mean(0), x.var(0, correction=0)
    shear = torch.eye(6, dtype=torch.float64)
    shear[0, 1:] = -mean
    scaled = padded @ shear @ torch.diag(torch.cat([torch.ones(1).double(), variance.rsqrt()]))
    assert torch.linalg.cond(padded) > 500
    assert torch.linalg.cond(padded @ shear) < torch.linalg.cond(padded)
    assert torch.linalg.cond(scaled) < 1.5
    # The Hessian of a least squares problem, once as it is and once through the preconditioner.
    layer = nn.Linear(5, 1).double()
    preconditioner = BatchNormPreconditioner(layer, **exact(q_rows="none"))
    columns = []
    for row in range(6):  # the change of the gradient with each parameter
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
            (layer.bias if row == 0 else layer.weight[0, row - 1 : row]).fill_(1)
        layer.zero_grad()
        (0.5 * layer(x).square().mean()).backward()
        preconditioner.step()
        columns.append(torch.cat([layer.bias.grad, layer.weight.grad[0]]))
    hessian = padded.T @ padded / 200
    values = torch.linalg.eigvals(torch.stack(columns, 1)).abs()
    assert values.max() / values.min() < 1.5 < torch.linalg.cond(hessian)


# ---------------------------------------------------------------- what counts


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()


def images(seed=1, count=6):
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(count, 2, 6, 6, generator=generator, dtype=torch.float64)


def statistics(preconditioner):
    return {
        name: (preconditioner.mean(name).clone(), preconditioner.variance(name).clone())
        for name in preconditioner.names
    }


def test_micro_batches_count_as_one_batch():
    one, two = small(), small()
    first, second = BatchNormPreconditioner(one), BatchNormPreconditioner(two)
    x = images()
    one(x).square().mean().backward()
    for part in x.split(2):
        (two(part).square().mean() / 3).backward()
    first.step()
    second.step()
    torch.testing.assert_close(statistics(second), statistics(first), rtol=1e-12, atol=1e-12)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-12)


def test_only_training_passes_with_a_backward_pass_count():
    model = small()
    preconditioner = BatchNormPreconditioner(model)
    before = statistics(preconditioner)
    model(images())
    with torch.no_grad():
        model(images())
    model.eval()
    model(images()).sum().backward()
    raw = [parameter.grad.clone() for parameter in model.parameters()]
    preconditioner.step()
    torch.testing.assert_close(statistics(preconditioner), before, rtol=0, atol=0)
    for parameter, grad in zip(model.parameters(), raw, strict=True):
        assert torch.equal(parameter.grad, grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_passes_count_once(reentrant):
    plain, saving = small(), small()
    first, second = BatchNormPreconditioner(plain), BatchNormPreconditioner(saving)
    x = images().requires_grad_()
    plain(x).square().mean().backward()
    checkpoint(saving, x, use_reentrant=reentrant).square().mean().backward()
    first.step()
    second.step()
    torch.testing.assert_close(statistics(second), statistics(first), rtol=0, atol=0)
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_a_layer_that_runs_twice_pools_its_inputs():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    preconditioner = BatchNormPreconditioner(layer, **exact())
    x = 3 + torch.randn(8, 4).double()
    middle = layer(x)
    layer(middle.relu()).square().mean().backward()
    preconditioner.step()
    both = torch.cat([x, middle.relu()]).detach()
    torch.testing.assert_close(preconditioner.mean(""), both.mean(0))
    torch.testing.assert_close(preconditioner.variance(""), both.var(0, correction=0))


def test_frozen_layers_and_layers_without_bias():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 2)
    ).double()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    preconditioner = BatchNormPreconditioner(model, **exact())
    x = 2 + torch.randn(32, 4).double()
    model(x).square().mean().backward()
    raw = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    preconditioner.step()
    assert model[0].weight.grad is None
    assert torch.equal(preconditioner.mean("0"), torch.zeros(4).double())
    hidden = model[0](x)
    for layer in (1, 2):
        name = f"{layer}.weight"
        torch.testing.assert_close(model[layer].weight.grad, raw[name] / hidden.var(0, correction=0))
        hidden = model[layer](hidden)
    torch.testing.assert_close(model[3].bias.grad, raw["3.bias"])


def test_a_layer_that_did_not_run_keeps_its_gradient():
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    preconditioner = BatchNormPreconditioner(model, decay=0.0)
    x = 4 + torch.randn(8, 3)
    model[0](x).sum().backward()
    F.linear(x, model[1].weight, model[1].bias).sum().backward()
    raw = model[1].weight.grad.clone()
    preconditioner.step()
    assert torch.equal(model[1].weight.grad, raw)
    assert not torch.equal(model[0].weight.grad, raw)


def test_statistics_that_are_not_finite_are_ignored():
    layer = nn.Linear(3, 2)
    preconditioner = BatchNormPreconditioner(layer)
    layer(torch.randn(8, 3)).sum().backward()
    preconditioner.step()
    before = statistics(preconditioner)
    layer.zero_grad()
    layer(torch.full((8, 3), torch.inf)).sum().backward()
    layer.weight.grad = torch.ones(2, 3)
    preconditioner.step()
    torch.testing.assert_close(statistics(preconditioner), before, rtol=0, atol=0)
    assert torch.isfinite(layer.weight.grad).all()


def test_discarded_statistics_are_gone():
    layer = nn.Linear(3, 2)
    preconditioner = BatchNormPreconditioner(layer)
    before = statistics(preconditioner)
    layer(torch.randn(8, 3)).sum().backward()
    preconditioner.discard()
    preconditioner.step()
    torch.testing.assert_close(statistics(preconditioner), before, rtol=0, atol=0)


def test_large_means_do_not_spoil_the_variance():
    for shape, layer in (((64, 4), nn.Linear(4, 2)), ((8, 4, 12, 12), nn.Conv2d(4, 2, 3))):
        for layout in (torch.contiguous_format, torch.channels_last):
            preconditioner = BatchNormPreconditioner(layer, **exact())
            x = 1e4 + torch.randn(shape)
            x = x.to(memory_format=layout) if x.dim() == 4 else x
            layer(x).sum().backward()
            preconditioner.step()
            axes = [axis for axis in range(x.dim()) if axis != 1]
            torch.testing.assert_close(
                preconditioner.variance(""), x.double().var(axes, correction=0), rtol=1e-3, atol=0
            )
            preconditioner.close()


def test_empty_batches_and_half_precision():
    layer = nn.Linear(3, 2, dtype=torch.bfloat16)
    preconditioner = BatchNormPreconditioner(layer, **exact())
    layer(torch.empty(0, 3, dtype=torch.bfloat16)).sum().backward()
    preconditioner.step()
    layer.zero_grad()
    x = (3 + torch.randn(64, 3)).bfloat16()
    layer(x).float().square().mean().backward()
    raw = layer.weight.grad.float(), layer.bias.grad.float()
    preconditioner.step()
    assert layer.weight.grad.dtype == torch.bfloat16
    wide = x.double()
    torch.testing.assert_close(preconditioner.variance(""), wide.var(0, correction=0), rtol=1e-5, atol=1e-6)
    expected = precondition_gradients(*raw, wide.mean(0), wide.var(0, correction=0))
    torch.testing.assert_close(layer.weight.grad.float(), expected[0], rtol=0.02, atol=0.02)


def test_autocast():
    model = small().float()
    preconditioner = BatchNormPreconditioner(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images().float()).square().mean()
    loss.backward()
    preconditioner.step()
    x = images()
    expected = 0.01 * x.mean([0, 2, 3])
    torch.testing.assert_close(preconditioner.mean("0"), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# ---------------------------------------------------------------- beside an optimiser


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.01, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
    ids=["sgdm", "sgd-foreach", "sgd-fused", "adam-fused", "adamw-foreach", "rmsprop"],
)
def test_the_hook_equals_the_plain_call(make):
    models = small(), small()
    preconditioners = [BatchNormPreconditioner(model) for model in models]
    optimizers = [make(model.parameters()) for model in models]
    handle = preconditioners[0].attach(optimizers[0])
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(images(seed)).square().mean().backward()
        preconditioners[1].step()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)
    handle.remove()
    optimizers[0].zero_grad()
    models[0](images()).square().mean().backward()
    raw = [parameter.grad.clone() for parameter in models[0].parameters()]
    optimizers[0].step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(models[0].parameters(), raw, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_changes_nothing(fused):
    models = small().float(), small().float()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, fused=fused) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        BatchNormPreconditioner(model).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for seed in range(3):
        losses = [model(images(seed).float()).square().mean() for model in models]
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(losses[0]).backward()
        losses[1].backward()
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[1].step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_an_optimiser_with_a_closure():
    model, twin = small(), small()
    preconditioner, other = BatchNormPreconditioner(model), BatchNormPreconditioner(twin)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    preconditioner.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(images()).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    expected = twin(images()).square().mean()
    expected.backward()
    other.step()
    plain.step()
    assert loss == expected
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_clipping_attached_later_sees_preconditioned_gradients():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    BatchNormPreconditioner(model).attach(optimizer)
    AdaptiveGradientClipping(model, 1e-4, exclude=None).attach(optimizer)
    (1e3 * model(images()).square().mean()).backward()
    optimizer.step()
    for module in (model[0], model[3]):
        ratio = module.weight.grad.flatten(1).norm(dim=1) / module.weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1e-4))


def test_it_trains_an_ill_conditioned_regression_faster():
    """As in the toy of section 3 of the page: scales from .1 to 10, logistic loss, full batches."""
    torch.manual_seed(0)
    x = torch.randn(400, 20).double() * torch.logspace(-1, 1, 20).double()
    y = ((x / x.std(0)) @ torch.randn(20).double() > 0).double()
    best = {}
    for preconditioned in (False, True):
        losses = []
        for rate in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
            layer = nn.Linear(20, 1).double()
            nn.init.zeros_(layer.weight)
            optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
            if preconditioned:
                BatchNormPreconditioner(layer, decay=0.9).attach(optimizer)
            for _ in range(100):
                optimizer.zero_grad()
                loss = F.binary_cross_entropy_with_logits(layer(x).squeeze(1), y)
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
        best[preconditioned] = min(losses)
    assert best[True] < 0.5 * best[False]


# ---------------------------------------------------------------- life


def test_state_dict_round_trip():
    model, other = small(), small()
    preconditioner = BatchNormPreconditioner(model)
    model(images()).sum().backward()
    preconditioner.step()
    file = io.BytesIO()
    torch.save(preconditioner.state_dict(), file)
    file.seek(0)
    loaded = BatchNormPreconditioner(other)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(statistics(loaded), statistics(preconditioner), rtol=0, atol=0)
    with pytest.raises(ValueError, match="differ in the layers '3'"):
        BatchNormPreconditioner(other, exclude="3").load_state_dict(preconditioner.state_dict())
    with pytest.raises(ValueError, match="2 channels for layer '0', which has 5"):
        BatchNormPreconditioner(nn.Sequential(nn.Conv2d(5, 1, 1))).load_state_dict(
            {"layers": {"0": preconditioner.state_dict()["layers"]["0"]}}
        )


def test_copies():
    model = small()
    preconditioner = BatchNormPreconditioner(model)
    average = copy.deepcopy(model)
    unpickled = pickle.loads(pickle.dumps(model))
    for copied in (average, unpickled):
        copied(images()).sum().backward()
    assert not any(layer.moments.pending.any() for layer in preconditioner._layers.values())
    model_twin, twin = copy.deepcopy((model, preconditioner))
    model_twin(images()).sum().backward()
    model(images()).sum().backward()
    twin.step()
    preconditioner.step()
    torch.testing.assert_close(statistics(twin), statistics(preconditioner), rtol=0, atol=0)
    assert repr(twin) == repr(preconditioner)


def test_closing_removes_every_hook():
    model = small()
    preconditioner = BatchNormPreconditioner(model)
    preconditioner.close()
    preconditioner.close()
    assert not any(module._forward_hooks for module in model.modules())
    assert not copy.deepcopy(preconditioner)._handles


@pytest.mark.parametrize("fullgraph", [False, True])
def test_under_compile(fullgraph):
    torch.compiler.reset()
    model, twin = small().float(), small().float()
    preconditioner, other = BatchNormPreconditioner(model), BatchNormPreconditioner(twin)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    for seed in range(3):
        model.zero_grad()
        twin.zero_grad()
        compiled(images(seed).float()).square().mean().backward()
        twin(images(seed).float()).square().mean().backward()
        preconditioner.step()
        other.step()
        torch.testing.assert_close(statistics(preconditioner), statistics(other), rtol=1e-5, atol=1e-7)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    compiled.eval()
    before = statistics(preconditioner)
    compiled(images().float())
    preconditioner.step()
    torch.testing.assert_close(statistics(preconditioner), before, rtol=0, atol=0)


def test_which_layers_are_taken():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1),
        nn.ConvTranspose2d(2, 2, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1)),
        nn.LazyLinear(3),
        nn.Linear(3, 3),
    )
    assert BatchNormPreconditioner(model).names == ["0", "4"]
    assert BatchNormPreconditioner(model, exclude=model[4]).names == ["0"]
    assert BatchNormPreconditioner(model, exclude=["0"]).names == ["4"]
    assert BatchNormPreconditioner(model, exclude=lambda name, module: name == "0").names == ["4"]


def test_meta_layers_move_with_their_model():
    model = nn.Linear(3, 2, device="meta")
    preconditioner = BatchNormPreconditioner(model)
    assert preconditioner.mean("").is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.5}, r"decay=1.5 must be in \[0, 1\]"),
        ({"relative_eps": -1}, "relative_eps=-1 must be at least 0"),
        ({"eps": float("nan")}, "eps=nan must be finite"),
        ({"q_rows": "all"}, "q_rows='all' must be"),
        ({"variance": "exact"}, "variance='exact' must be"),
        ({"exclude": "head"}, "exclude='head' matches nothing; the names are 0, 3"),
        ({"exclude": [3]}, "exclude has 3"),
        ({"exclude": ["0", "3"]}, "no linear layer or convolution that is left"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchNormPreconditioner(small(), **arguments)


def test_wrapped_models_keep_their_names():
    model = small()
    assert BatchNormPreconditioner(torch.compile(model, backend="eager")).names == ["0", "3"]
    with pytest.raises(ValueError, match="model is a DataParallel"):
        BatchNormPreconditioner(nn.DataParallel(model))


def test_shared_weights_are_refused():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="weight of '1' is that of '0' too"):
        BatchNormPreconditioner(model)
    with pytest.raises(ValueError, match="none of the layers"):
        BatchNormPreconditioner(small()).mean("7")
    with pytest.raises(ValueError, match=r"must be a torch.optim.Optimizer"):
        BatchNormPreconditioner(small()).attach(None)
