"""Adaptive gradient clipping against its equation, unit by unit, and beside optimisers."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varshift.optim import AdaptiveGradientClipping, adaptive_clip_grad_


def plainly(weight, grad, factor, eps):
    """The published formula, one unit after the other."""
    if weight.dim() <= 1:
        units = [(weight.reshape(-1), grad.reshape(-1))]
    else:
        units = [(w.reshape(-1), g.reshape(-1)) for w, g in zip(weight, grad, strict=True)]
    out, clipped = [], 0
    for w, g in units:
        cap = factor * max(math.sqrt(sum(x * x for x in w.tolist())), eps)
        norm = math.sqrt(sum(x * x for x in g.tolist()))
        clipped += norm > cap
        out.append(g * (cap / max(norm, 1e-6)) if norm > cap else g)
    return torch.stack(out).reshape(grad.shape) if out else grad, clipped


def parameter(shape, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
    made.grad = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    return made


shapes = st.lists(st.lists(st.integers(0, 4), max_size=5).map(tuple), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    shapes=shapes,
    factor=st.floats(1e-3, 3),
    eps=st.floats(0, 2),
    scale=st.sampled_from([1e-8, 1e-3, 0.3, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_formula(shapes, factor, eps, scale, seed):
    parameters = [parameter(shape, seed + n, scale) for n, shape in enumerate(shapes)]
    expected = [plainly(p.detach(), p.grad.clone(), factor, eps) for p in parameters]
    count = adaptive_clip_grad_(parameters, factor, eps)
    assert count == sum(clipped for _, clipped in expected)
    for made, (grad, _) in zip(parameters, expected, strict=True):
        torch.testing.assert_close(made.grad, grad, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(shapes=shapes, factor=st.floats(1e-3, 1), seed=st.integers(0, 1000))
def test_no_unit_is_above_its_cap_and_clipping_again_changes_nothing(shapes, factor, seed):
    parameters = [parameter(shape, seed + n) for n, shape in enumerate(shapes)]
    adaptive_clip_grad_(parameters, factor)
    for made in parameters:
        dims = tuple(range(1, made.dim())) if made.dim() > 1 else None
        if made.numel():
            cap = factor * torch.linalg.vector_norm(made.detach(), dim=dims).clamp(min=1e-3)
            assert (torch.linalg.vector_norm(made.grad, dim=dims) <= cap * (1 + 1e-12)).all()
    once = [made.grad.clone() for made in parameters]
    adaptive_clip_grad_(parameters, factor)
    for made, grad in zip(parameters, once, strict=True):
        torch.testing.assert_close(made.grad, grad, rtol=1e-14, atol=0)


@pytest.mark.zoo
def test_agrees_with_timm():
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()
    from timm.utils.agc import adaptive_clip_grad

    shapes = [(5, 3, 3, 3), (4, 7), (9,), (), (1, 6, 1, 1), (6, 1, 1, 1)]
    for scale in (1e-4, 1e-2, 1.0):
        ours = [parameter(shape, n, scale) for n, shape in enumerate(shapes)]
        theirs = [parameter(shape, n, scale) for n, shape in enumerate(shapes)]
        adaptive_clip_grad_(ours, 0.02)
        adaptive_clip_grad(theirs, 0.02)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=0)


def test_a_shift_is_one_unit_unless_asked_otherwise():
    whole, channels, filters = (parameter((1, 6, 1, 1)), parameter((1, 6, 1, 1)), parameter((2, 6, 1, 1)))
    assert adaptive_clip_grad_([whole]) == 1
    cap = 0.01 * whole.detach().norm()
    torch.testing.assert_close(whole.grad.norm(), cap)
    assert adaptive_clip_grad_([channels], per_channel=True) == 6
    torch.testing.assert_close(channels.grad.abs(), 0.01 * channels.detach().abs())
    assert adaptive_clip_grad_([filters], per_channel=True) == 2
    linear = parameter((1, 6))
    assert adaptive_clip_grad_([linear], per_channel=True) == 1


def test_units_that_start_at_zero_can_move():
    made = parameter((3, 4))
    made.data.zero_()
    adaptive_clip_grad_([made], 0.02, 1e-3)
    torch.testing.assert_close(made.grad.norm(dim=1), torch.full((3,), 2e-5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_takes_norms_in_single_precision(dtype):
    made = parameter((4, 5000), scale=20.0, dtype=dtype)  # squares overflow half precision
    vector = parameter((5000,), scale=20.0, dtype=dtype)
    adaptive_clip_grad_([made, vector], 0.01)
    ratio = made.grad.double().norm(dim=1) / made.detach().double().norm(dim=1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.01), rtol=5e-3, atol=0)
    ratio = vector.grad.double().norm() / vector.detach().double().norm()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.01), rtol=5e-3, atol=0)


def test_complex_gradients():
    for shape in ((3, 4), (5,)):
        made = nn.Parameter(torch.randn(shape, dtype=torch.complex128))
        made.grad = torch.randn(shape, dtype=torch.complex128)
        direction = made.grad / torch.linalg.vector_norm(made.grad, dim=-1, keepdim=True)
        adaptive_clip_grad_([made])
        cap = 0.01 * torch.linalg.vector_norm(made.detach(), dim=-1, keepdim=True)
        torch.testing.assert_close(made.grad, direction * cap)


def test_sparse_gradients_of_rows():
    table = nn.Embedding(6, 3, sparse=True)
    dense = copy.deepcopy(table)
    dense.sparse = False
    for one in (table, dense):
        (100 * one(torch.tensor([1, 4, 1])).square().sum()).backward()
        adaptive_clip_grad_(one.parameters(), 0.02)
    assert table.weight.grad.is_sparse
    torch.testing.assert_close(table.weight.grad.to_dense(), dense.weight.grad)
    odd = nn.Parameter(torch.ones(2, 2))
    odd.grad = torch.eye(2).to_sparse()
    with pytest.raises(ValueError, match="its units cannot be told apart"):
        adaptive_clip_grad_([odd])


def test_numbers_that_are_not_finite_stay_to_be_found():
    made = parameter((3, 2))
    made.grad[0, 0], made.grad[1, 0] = torch.inf, torch.nan
    adaptive_clip_grad_([made])
    assert not torch.isfinite(made.grad[0]).all()
    assert not torch.isfinite(made.grad[1]).all()
    assert torch.isfinite(made.grad[2]).all()


def test_nothing_to_do():
    assert adaptive_clip_grad_([nn.Parameter(torch.ones(3))]) == 0
    assert adaptive_clip_grad_([]) == 0
    small = parameter((3, 4), scale=1e-6)
    before = small.grad.clone()
    assert adaptive_clip_grad_(small) == 0
    assert torch.equal(small.grad, before)
    meta = nn.Linear(2, 2, device="meta")
    meta.weight.grad = torch.empty(2, 2, device="meta")
    assert adaptive_clip_grad_(meta.parameters()).is_meta


def test_channels_last_weights():
    made = parameter((4, 3, 5, 5))
    twin = nn.Parameter(made.detach().to(memory_format=torch.channels_last))
    twin.grad = made.grad.to(memory_format=torch.channels_last)
    adaptive_clip_grad_([made])
    adaptive_clip_grad_([twin])
    torch.testing.assert_close(twin.grad, made.grad)
    assert twin.grad.is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- what is clipped


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def backward(model, scale=1e4):
    generator = torch.Generator().manual_seed(1)
    (scale * model(torch.randn(5, 2, 6, 6, generator=generator)).square().mean()).backward()


def touched(model, clipping):
    model.zero_grad()
    backward(model)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    clipping.step()
    return [name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])]


def test_the_last_linear_layer_is_left_alone():
    model = network()
    assert touched(model, AdaptiveGradientClipping(model)) == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_what_may_be_excluded():
    model = network()
    everything = [name for name, _ in model.named_parameters()]
    assert touched(model, AdaptiveGradientClipping(model, exclude=None)) == everything
    assert touched(model, AdaptiveGradientClipping(model.parameters())) == everything
    for excluded in (
        model[0],
        [model[0]],
        "0.*",
        ["0.weight", "0.bias"],
        [model[0].weight, model[0].bias],
        lambda name, parameter: name.startswith("0"),
    ):
        for source in (model, model.named_parameters()):
            clipping = AdaptiveGradientClipping(source, exclude=excluded)
            assert touched(model, clipping) == everything[2:]
    assert touched(model, AdaptiveGradientClipping(model.parameters(), exclude=model[0])) == everything[2:]


def test_groups_have_factors_of_their_own():
    model = network()
    clipping = AdaptiveGradientClipping(
        [
            {"params": model[0].weight, "clip_factor": 0.5, "clip_eps": 1.0},
            {"params": [("w", model[3].weight)]},
        ],
        0.02,
    )
    clipping.add_param_group({"params": [model[5].weight], "clip_factor": 0.1})
    for weight in model.parameters():
        weight.grad = 100 * torch.randn_like(weight)
    clipping.step()
    for layer, factor, eps in ((0, 0.5, 1.0), (3, 0.02, 1e-3), (5, 0.1, 1e-3)):
        weight = model[layer].weight
        cap = factor * weight.detach().flatten(1).norm(dim=1).clamp(min=eps)
        torch.testing.assert_close(weight.grad.flatten(1).norm(dim=1), cap)
    with pytest.raises(ValueError, match="in another group already"):
        clipping.add_param_group({"params": [model[0].weight]})


def test_an_optimiser_is_followed_with_its_later_groups():
    model = network()
    optimizer = torch.optim.SGD([{"params": [model[0].weight], "clip_factor": 0.5}], lr=0.1)
    clipping = AdaptiveGradientClipping(optimizer, 0.02, exclude=model[0].bias)
    assert touched(model, clipping) == ["0.weight"]
    optimizer.add_param_group({"params": [*model[3].parameters(), model[0].bias]})
    assert touched(model, clipping) == ["0.weight", "3.weight", "3.bias"]
    optimizer.param_groups[0]["clip_factor"] = 1e9
    assert touched(model, clipping) == ["3.weight", "3.bias"]
    with pytest.raises(ValueError, match="the groups are the optimiser's"):
        clipping.add_param_group({"params": [model[5].weight]})


def test_an_optimiser_with_names():
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    assert touched(model, AdaptiveGradientClipping(optimizer, exclude="[03].*")) == ["5.weight", "5.bias"]


# ---------------------------------------------------------------- beside an optimiser

OPTIMISERS = {
    "sgdm": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_hook_equals_the_plain_call(name):
    models = network(), network()
    optimizers = [OPTIMISERS[name](model.parameters()) for model in models]
    clippings = [AdaptiveGradientClipping(model) for model in models]
    handle = clippings[0].attach(optimizers[0])
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model)
        clippings[1].step()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)
    handle.remove()
    backward(models[0])
    raw = models[0][0].weight.grad.clone()
    optimizers[0].step()
    assert torch.equal(models[0][0].weight.grad, raw)


def test_a_closure_is_clipped_after_it_ran():
    model, twin = network(), network()
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    AdaptiveGradientClipping(model).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        backward(model)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert optimizer.step(closure=closure) == 3.0
    for _ in range(2):
        plain.zero_grad()
        backward(twin)
        AdaptiveGradientClipping(twin).step()
        plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["sgdm", "sgd-fused", "adamw-fused"])
def test_a_gradient_scaler_does_not_change_what_is_clipped(name):
    model, twin = network(), network()
    optimizer, plain = OPTIMISERS[name](model.parameters()), OPTIMISERS[name](twin.parameters())
    AdaptiveGradientClipping(model).attach(optimizer)
    clipping = AdaptiveGradientClipping(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(5, 2, 6, 6, generator=generator)
        for one, stepper in ((model, optimizer), (twin, plain)):
            stepper.zero_grad()
            loss = one(x).square().mean()
            (scaler.scale(loss) if one is model else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert clipping.step() > 0
        plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- life


def test_state_copies_and_words():
    model = network()
    clipping = AdaptiveGradientClipping(model, 0.02, exclude=[model[3]])
    assert repr(clipping) == "AdaptiveGradientClipping(parameters=4, excluded=2, clip_factor=0.02, eps=0.001)"
    clipping.groups[0]["clip_factor"] = 0.5
    other = AdaptiveGradientClipping(model)
    other.load_state_dict(clipping.state_dict())
    assert other.groups[0]["clip_factor"] == 0.5
    for twin_model, twin in (
        copy.deepcopy((model, clipping)),
        pickle.loads(pickle.dumps((model, clipping))),
    ):
        model.zero_grad()
        assert repr(twin) == repr(clipping)
        backward(twin_model)
        backward(model)
        assert twin.step() == clipping.step()
        for p, q in zip(model.parameters(), twin_model.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    with pytest.raises(ValueError, match="state has 1 groups, this has 2"):
        AdaptiveGradientClipping([{"params": [p]} for p in model[0].parameters()]).load_state_dict(
            clipping.state_dict()
        )


def test_under_compile():
    torch.compiler.reset()
    model, twin = network(), network()
    clipping, other = AdaptiveGradientClipping(model), AdaptiveGradientClipping(twin)
    compiled = torch.compile(clipping.step, backend="aot_eager")
    for _ in range(2):
        for one in (model, twin):
            one.zero_grad()
            backward(one)
        assert compiled() == other.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: AdaptiveGradientClipping(m, 0), "clip_factor=0 must be above 0"),
        (lambda m: AdaptiveGradientClipping(m, 0.1, -1), "eps=-1 must be at least 0"),
        (
            lambda m: AdaptiveGradientClipping(m, exclude="head.*"),
            r"exclude='head.\*' matches nothing; the names",
        ),
        (lambda m: AdaptiveGradientClipping(m.parameters(), exclude="0.*"), "came without names"),
        (lambda m: AdaptiveGradientClipping(m, exclude=[7]), "exclude has 7"),
        (lambda m: AdaptiveGradientClipping(m, exclude=m), "no parameter that is left to clip"),
        (lambda m: AdaptiveGradientClipping([]), "no parameter that is left to clip"),
        (lambda m: AdaptiveGradientClipping(m[0].weight), "params is a tensor"),
        (lambda m: AdaptiveGradientClipping([3]), "params has a int"),
        (
            lambda m: AdaptiveGradientClipping([{"params": [m[0].weight], "clip_factor": -1}]),
            "clip_factor=-1 must be above 0",
        ),
        (lambda m: AdaptiveGradientClipping(m).attach(m), r"must be a torch.optim.Optimizer"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(network())
