"""Which passes count for batch norm preconditioning, and in what precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from varshift.optim import BatchNormPreconditioner, precondition_gradients


def exact(**rest):
    """The preconditioner of this batch alone, without floors."""
    return {"decay": 0.0, "relative_eps": 0.0, "eps": 0.0, **rest}


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
