"""Moments and affine maps per map of a batch, against plain operators in double precision."""

import pytest
import torch

from varshift.functional._map_statistics import map_affine, map_moments, maps_are_worth_it


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYOUTS = {
    "packed": lambda: draw(2, 2, 3, 3),
    "channels last": lambda: draw(2, 3, 3, 2).to(memory_format=torch.channels_last),
    "sequences": lambda: draw(2, 2, 9),
    "every other sample": lambda: draw(4, 2, 3, 3)[::2],
    "one channel": lambda: draw(2, 1, 3, 2, 2),
    "volumes, channels last": lambda: draw(1, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
    "transposed": lambda: draw(2, 2, 4, 2).transpose(2, 3),
}


def beside(values, x):
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_values_and_both_derivatives(make):
    x = make().requires_grad_()
    centre = draw(*x.shape[:2], seed=1)
    scale, shift = (draw(*x.shape[:2], seed=seed).requires_grad_() for seed in (2, 3))
    var, mean = torch.var_mean(x, tuple(range(2, x.dim())), correction=0)
    torch.testing.assert_close(map_moments(x), (mean, var), rtol=1e-12, atol=1e-13)
    out = map_affine(x, centre, scale, shift)
    expected = (x - beside(centre, x)) * beside(scale, x) + beside(shift, x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert out.stride() == torch.empty_like(x).stride() or not x.is_contiguous()
    torch.autograd.gradcheck(map_moments, (x,))
    torch.autograd.gradgradcheck(map_moments, (x,))
    arguments = (x, scale, shift)
    torch.autograd.gradcheck(lambda x, s, b: map_affine(x, centre, s, b), arguments)
    torch.autograd.gradgradcheck(lambda x, s, b: map_affine(x, centre, s, b), arguments)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_large_mean_costs_no_digits(layout):
    x = (draw(4, 3, 16, 16) * 0.01 + 1000).float().to(memory_format=layout).requires_grad_()
    var, mean = torch.var_mean(x.detach().double(), (2, 3), correction=0)
    own_mean, own_var = map_moments(x)
    torch.testing.assert_close(own_mean.double(), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(own_var.double(), var, rtol=1e-3, atol=0)
    upstream = draw(4, 3, 16, 16, seed=1).float()
    scale = torch.ones(4, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(map_affine(x, own_mean, scale, own_mean), scale, upstream)
    expected = (upstream.double() * (x.detach().double() - beside(own_mean.double(), x))).sum((2, 3))
    torch.testing.assert_close(slope.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    x = draw(3, 4, 5, 3).to(dtype).requires_grad_()
    mean, var = map_moments(x)
    assert mean.dtype == var.dtype == torch.float32
    wide_var, wide_mean = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean.double(), wide_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), wide_var, rtol=1e-5, atol=1e-6)
    out = map_affine(x, mean, var, mean)
    assert out.dtype == dtype
    out.sum().backward()
    assert x.grad.dtype == dtype


def test_keeps_the_input_only():
    kept = []
    x = draw(8, 4, 32, 32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mean, var = map_moments(x)
        map_affine(x, mean, var, mean)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sum(size for address, size in storages.items() if address != x.data_ptr()) < 0.01 * x.nbytes


def test_where_plain_operators_are_better():
    assert maps_are_worth_it(draw(2, 3, 4, 4))
    assert not maps_are_worth_it(draw(2, 3, 2, 2))
    assert not maps_are_worth_it(draw(2, 3))
    assert not maps_are_worth_it(torch.empty(2, 3, 4, 4, device="meta"))
