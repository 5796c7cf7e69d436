"""Scaled weight standardisation, binary weights and signs against the paper page's figures."""

import math

import pytest
import torch

from varshift.functional import (
    activation_gain,
    binary_sign,
    binary_weight,
    norm_free_betas,
    scaled_std_weight,
    shifted_prelu,
    shifted_sign,
)


def gradient_of(function, x):
    x = x.clone().requires_grad_()
    function(x).sum().backward()
    return x.grad


def traced(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("wrap", [lambda f: f, traced], ids=["eager", "traced"])
def test_the_vector_of_the_signs_gradient(wrap):
    torch.compiler.reset()
    x = torch.tensor([-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75])
    assert gradient_of(wrap(binary_sign), x).tolist() == [0.5, 1, 1.5, 2, 1.5, 1, 0.5]
    outside = torch.tensor([-math.inf, -1e30, -1.0, 1.0, 1.5, math.inf])
    assert gradient_of(wrap(binary_sign), outside).tolist() == [0.0] * 6
    assert wrap(binary_sign)(outside).tolist() == [-1, -1, -1, 1, 1, 1]


@pytest.mark.parametrize("wrap", [lambda f: f, traced], ids=["eager", "traced"])
@pytest.mark.parametrize("convention", [0, 1])
def test_the_sign_of_zero(wrap, convention):
    torch.compiler.reset()
    x = torch.tensor([-0.0, 0.0, 1e-45, -1e-45])
    function = wrap(lambda x: binary_sign(x, convention))
    assert function(x).tolist() == [convention, convention, 1, -1]
    assert gradient_of(function, x).tolist() == [2, 2, 2, 2]


def test_the_signs_gradient_can_be_differentiated_and_mapped():
    x = torch.tensor([-0.5, 0.25], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(binary_sign(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [2, -2]
    each = torch.func.vmap(torch.func.grad(lambda x: binary_sign(x)))(x.detach())
    assert each.tolist() == [1, 1.5]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(8, 16, 3, 3), (8, 16, 1, 1), (5, 7)])
def test_a_standardised_filter_has_mean_0_and_the_norm_of_its_gain(shape):
    weight, gain = draw(*shape) * 0.03 + 0.5, draw(shape[0], *[1] * (len(shape) - 1), seed=1)
    for gamma, eps in ((1.0, 1e-5), (1.7, 0.01)):
        out = scaled_std_weight(weight, gain, gamma, eps).flatten(1)
        std = weight.flatten(1).std(1, correction=0)
        torch.testing.assert_close(out.mean(1), torch.zeros(shape[0]).double(), rtol=0, atol=1e-14)
        expected = gain.flatten().abs() * gamma * std / (std + eps)
        torch.testing.assert_close(out.norm(dim=1), expected, rtol=1e-12, atol=0)


def test_gradients_of_standardisation():
    weight, gain = draw(3, 2, 3, 3).requires_grad_(), draw(3, 1, 1, 1, seed=1).requires_grad_()
    torch.autograd.gradcheck(lambda w, g: scaled_std_weight(w, g, 1.3, 1e-3), (weight, gain))


def test_a_constant_filter_has_a_finite_gradient():
    weight = torch.ones(2, 3, 3, 3, requires_grad=True)
    scaled_std_weight(weight).sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_standardised_weights_keep_the_variance_of_an_activation():
    torch.manual_seed(0)
    weight = scaled_std_weight(torch.randn(512, 512), gamma=activation_gain("relu"))
    out = torch.relu(torch.randn(2048, 512)) @ weight.T
    assert out.var(0).mean() == pytest.approx(1.0, rel=0.02)
    assert out.mean(0).square().mean() < 0.01


def output_variance(latent):
    """Variance of the response to random signs, per filter, on average."""
    return binary_weight(latent, standardise=True).flatten(1).square().sum(1).mean().item()


def test_output_variance_of_binary_weights():
    torch.manual_seed(0)
    gaussian = torch.randn(256, 64, 3, 3)
    assert output_variance(gaussian) == pytest.approx(2 / math.pi, abs=0.005)
    # The released start: so small that eps takes 6.6 % off 3/4, measured as .698 to .699.
    released = torch.rand(256, 64, 3, 3) * 1e-3
    assert output_variance(released) == pytest.approx(0.6985, abs=0.002)
    signs = torch.randint(0, 2, (4096, 576)).float() * 2 - 1
    response = signs @ binary_weight(gaussian).flatten(1).T
    assert response.var(0).mean().item() == pytest.approx(output_variance(gaussian), rel=0.01)


def test_binary_weights_are_signs_times_a_scale():
    latent, gain = draw(4, 3, 3, 3), draw(4, 1, 1, 1, seed=1)
    out = binary_weight(latent, gain)
    flat = latent.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    standard = centred / (flat.std(1, correction=0, keepdim=True) + 1e-5) / math.sqrt(27)
    expected = gain.flatten()[:, None] * standard.abs().mean(1, keepdim=True) * standard.sign()
    torch.testing.assert_close(out.flatten(1), expected, rtol=1e-12, atol=0)
    plain = binary_weight(latent, standardise=False).flatten(1)
    torch.testing.assert_close(plain, flat.abs().mean(1, keepdim=True) * flat.sign(), rtol=1e-12, atol=0)


def test_gradient_of_binary_weights_is_straight_through():
    latent, upstream = 1.5 * draw(4, 3, 3, 3), draw(4, 3, 3, 3, seed=2)
    for standardise in (True, False):
        ours = latent.clone().requires_grad_()
        (binary_weight(ours, standardise=standardise) * upstream).sum().backward()
        theirs = latent.clone().requires_grad_()
        inner = scaled_std_weight(theirs) if standardise else theirs
        (inner.clamp(-1, 1) * upstream).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)
    assert (ours.grad == 0).any()  # the clamp binds for latent weights that are not standardised


@pytest.mark.parametrize("convention", [0, 1])
def test_a_weight_of_zero(convention):
    latent = torch.tensor([[1.0, 0.0, -2.0]])
    out = binary_weight(latent, standardise=False, sign_of_zero=convention)
    assert out.tolist() == [[1.0, float(convention), -1.0]]


def test_half_precision_weights_are_standardised_in_single():
    latent = (draw(16, 64, 3, 3) * 1e-3 + 1).to(torch.bfloat16)
    out = scaled_std_weight(latent)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), scaled_std_weight(latent.float()), rtol=0.01, atol=1e-6)


def test_shifted_activations():
    x, b, a, c = draw(2, 3, 4), draw(3, seed=1), draw(3, seed=2).abs(), draw(3, seed=3)
    inner = x + b[:, None]
    torch.testing.assert_close(shifted_sign(x, b), inner.sign())
    expected = torch.where(inner > 0, inner, a[:, None] * inner) + c[:, None]
    torch.testing.assert_close(shifted_prelu(x, b, a, c), expected)
    with pytest.raises(ValueError, match=r"shift of shape \(2,\)"):
        shifted_sign(x, b[:2])
    with pytest.raises(ValueError, match=r"slope of shape \(1,\)"):
        shifted_prelu(x, b, a[:1], c)


# Strided blocks of ReActNet-A: 32, 64, 128x2, 256x2, 512x6, 1024x2.
REACT_A = [False, True, False, True, False, True, False, False, False, False, False, True, False]
RELEASED_A = [
    (1, 0.9806),
    (0.9623, 0.9449),
    (1, 0.9806),
    (0.9623, 0.9449),
    (1, 0.9806),
    (0.9623, 0.9449),
    (1, 0.9806),
    (0.9623, 0.9449),
    (0.9285, 0.9129),
    (0.898, 0.8839),
    (0.8704, 0.8575),
    (0.8452, 0.8333),
    (1, 0.9806),
]
RELEASED_18 = [1, 1, 0.9806, 0.9623] + 3 * [0.9449, 1, 0.9806, 0.9623]


def test_the_released_factors_of_react_net_a():
    blocks = norm_free_betas(REACT_A, branches=2)
    assert [tuple(round(beta, 4) for beta in block) for block in blocks] == RELEASED_A


def test_the_released_factors_of_react_net_18():
    blocks = norm_free_betas([True, False, False, False] * 4)
    assert [round(beta, 4) for (beta,) in blocks] == RELEASED_18


def test_the_rule_of_nf_resnets():
    blocks = norm_free_betas([True, False, False] * 2, rule="nf-resnet", alpha=0.2)
    expected = [1, 1.04**-0.5, 1.08**-0.5, 1.12**-0.5, 1.04**-0.5, 1.08**-0.5]
    assert [beta for (beta,) in blocks] == pytest.approx(expected, abs=1e-15)
    (first, second), _ = norm_free_betas([True, False], branches=2, rule="nf-resnet")
    assert (first, second) == pytest.approx((1, 1.04**-0.5))


def test_refusals():
    for call, rule in (
        (lambda: binary_sign(torch.ones(1), 2), "sign_of_zero=2"),
        (lambda: binary_weight(torch.ones(1, 2), sign_of_zero=-1), "sign_of_zero=-1"),
        (lambda: scaled_std_weight(torch.ones(1, 2), eps=-1.0), "eps=-1.0"),
        (lambda: scaled_std_weight(torch.ones(1, 2), gamma=math.nan), "gamma=nan"),
        (lambda: norm_free_betas([True], rule="mine"), "rule='mine'"),
        (lambda: norm_free_betas([True], branches=0), "branches=0"),
        (lambda: norm_free_betas([True], alpha=math.inf), "alpha=inf"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
