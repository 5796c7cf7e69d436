"""Batch norm preconditioning against worked vectors, its identities, and life in a training loop."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varshift.optim import BatchNormPreconditioner, precondition_gradients

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


@pytest.mark.parametrize("batch", [1, 4])
def test_the_variance_of_single_samples_is_not_lost(batch):
    """True variances .25, 4 and 9 at any batch size."""
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
