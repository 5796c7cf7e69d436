"""Weight rescaling against its identities: same function, same path, unit norms."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varshift.optim import WeightRescaling, find_followed_by_norm, find_scale_invariant


def network(eps=1e-30, **factory):
    """The set-up of the toy: conv 8 to 16, batch norm without affine, ReLU, pooling, linear."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, bias=False, **factory),
        nn.BatchNorm2d(16, eps=eps, affine=False, **factory),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5, **factory),
    ).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 8, 7, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (6,), generator=generator)


def loss_of(model):
    x, y = batch()
    return F.cross_entropy(model(x), y)


def norms(weight):
    return torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)


@pytest.mark.parametrize(("eps", "loss_bound", "grad_bound"), [(1e-30, 1e-14, 1e-12), (1e-5, 7e-5, 1e-3)])
def test_loss_is_invariant_and_gradients_scale_inversely(eps, loss_bound, grad_bound):
    """A known vector; half of 1e-5 over the smallest variance, .3 squared times .8, is 7e-5."""
    model = network(eps)
    WeightRescaling([model[0]]).rescale_()
    loss = loss_of(model)
    loss.backward()
    grad = model[0].weight.grad.clone()
    c = torch.rand(16, dtype=torch.float64) * 3 + 0.3
    with torch.no_grad():
        model[0].weight.mul_(c.view(-1, 1, 1, 1))
    model.zero_grad()
    scaled = loss_of(model)
    scaled.backward()
    assert abs(scaled - loss) < loss_bound
    difference = (c.view(-1, 1, 1, 1) * model[0].weight.grad - grad).abs().max() / grad.abs().max()
    assert difference < grad_bound


class RatePerFilter(torch.optim.SGD):
    """SGD with momentum in torch's form, with a learning rate per filter."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.mul_(group["momentum"]).add_(parameter.grad)
                parameter.sub_(group["rates"].view(-1, *[1] * (parameter.dim() - 1)) * buffer)


def train(interval, scale_state, matched, steps=200):
    """Trains the filters of a toy; returns directions and accumulated factors."""
    model = network()
    layer = model[0]
    WeightRescaling([layer]).rescale_()
    optimizer = RatePerFilter([layer.weight], lr=0.5, momentum=0.9)
    optimizer.param_groups[0]["rates"] = torch.full((16,), 0.5, dtype=torch.float64)
    rescaling = WeightRescaling([(layer, model[1])], scale_state=scale_state)
    total = torch.ones(16, dtype=torch.float64)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        if interval and step % interval == 0:
            total *= rescaling.rescale_(optimizer)[0]
            if matched:
                optimizer.param_groups[0]["rates"] = 0.5 / total.square()
    direction = layer.weight.detach() / norms(layer.weight).view(-1, 1, 1, 1)
    return direction, total, norms(layer.weight)


def test_scaled_momentum_and_rate_keep_the_path():
    """A known vector: directions equal to 1e-12, the norm reappears as the accumulated factor."""
    plain, _, grown = train(0, True, False)
    assert (grown > 1.01).all()
    for interval in (1, 20):
        direction, total, last = train(interval, True, True)
        torch.testing.assert_close(direction, plain, rtol=0, atol=1e-12)
        torch.testing.assert_close(total, grown, rtol=1e-12, atol=0)
        torch.testing.assert_close(last, torch.ones_like(last), rtol=1e-12, atol=0)
    left_behind, _, _ = train(20, False, True)
    assert (left_behind - plain).abs().max() > 1e-3
    _, constant_rate, _ = train(1, True, False)
    assert constant_rate.mean() > grown.mean()  # the rate of the plain run fades, this one does not


def test_the_component_outside_the_span_of_the_inputs():
    """Section 2: SGD never touches it, decay shrinks it by (1 - eta lambda)^T, rescaling by the factors."""
    torch.manual_seed(0)
    x = torch.randn(64, 20).double()
    x[:, 12:] = 0  # the last eight inputs are outside the span
    y = torch.randint(4, (64,))
    left = {}
    for name, decay in (("plain", 0.0), ("decay", 5e-3), ("rescaled", 0.0)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(20, 4, bias=False), nn.BatchNorm1d(4, eps=1e-30)).double()
        WeightRescaling([model[0]]).rescale_()
        start = model[0].weight.detach()[:, 12:].clone()
        optimizer = torch.optim.SGD([model[0].weight], lr=0.1, weight_decay=decay)
        rescaling = WeightRescaling([model[0]])
        total = torch.ones(4, dtype=torch.float64)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if name == "rescaled":
                total *= rescaling.rescale_(optimizer)[0]
        left[name] = model[0].weight.detach()[:, 12:] * total[:, None] / start
    torch.testing.assert_close(left["plain"], torch.ones(4, 8).double(), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        left["decay"], torch.full((4, 8), (1 - 5e-4) ** 300, dtype=torch.float64), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(left["rescaled"], torch.ones(4, 8).double(), rtol=1e-12, atol=0)
    assert round((1 - 5e-4) ** 300, 6) == 0.860676


def walk(rate, momentum, decay, rescaled, steps=3000, width=2000):
    """Random gradients at right angles to the weight: its mean angle per step and its norm to the fourth."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(1, width, dtype=torch.float64))
    with torch.no_grad():
        weight[0, 0] = 1.0
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, weight_decay=decay)
    if rescaled:
        WeightRescaling([weight]).attach(optimizer)
    angles, sizes = [], []
    for _ in range(steps):
        before = weight.detach() / weight.detach().norm()
        tangent = torch.randn(1, width, generator=generator, dtype=torch.float64)
        tangent -= (tangent @ before.T) * before
        weight.grad = tangent / tangent.norm() / weight.detach().norm()
        optimizer.step()
        after = weight.detach() / weight.detach().norm()
        angles.append(2 * torch.asin((after - before).norm() / 2).item())
        sizes.append(weight.detach().norm().item() ** 4)
    return sum(angles[steps // 2 :]) / (steps - steps // 2), sum(sizes[steps // 2 :]) / (steps - steps // 2)


@pytest.mark.parametrize(("momentum", "angle"), [(0.0, 0.01), (0.9, 0.02294)])
def test_the_angle_per_step_is_that_of_section_3(momentum, angle):
    assert walk(0.01, momentum, 0.0, True)[0] == pytest.approx(angle, rel=0.01)


def test_the_rate_that_reproduces_a_run_with_weight_decay():
    """Sections 3.1 and 3.3: rate .1, decay 5e-3, momentum .9 settle at r^4 = 100 and .02294 per step."""
    angle, size = walk(0.1, 0.9, 5e-3, False)
    assert size == pytest.approx(100, rel=0.02)
    assert angle == pytest.approx(0.02294, rel=0.01)
    assert walk(0.1 / size**0.5, 0.9, 0.0, True)[0] == pytest.approx(angle, rel=0.015)


def test_adam_keeps_its_path_too():
    """w/c with m c, v c^2 and rate/c: the same directions up to Adam's eps."""

    def run(interval):
        model = network()
        weight = model[0].weight
        WeightRescaling([model[0]], per="layer", target=1.0).rescale_()
        optimizer = torch.optim.Adam([weight], lr=0.01, eps=1e-16, amsgrad=True)
        rescaling = WeightRescaling([model[0]], per="layer", target=1.0)
        total = 1.0
        for step in range(1, 61):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            if interval and step % interval == 0:
                total *= rescaling.rescale_(optimizer)[0].item()
                optimizer.param_groups[0]["lr"] = 0.01 / total
        return weight.detach() / weight.detach().norm()

    torch.testing.assert_close(run(7), run(0), rtol=0, atol=1e-8)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), nn.BatchNorm1d, (9, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), nn.BatchNorm1d, (3, 6, 8)),
    "conv2d without bias": (lambda: nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d, (3, 6, 7, 7)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d, (3, 6, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d, (3, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), nn.BatchNorm3d, (3, 2, 4, 5, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d, (3, 6, 4, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d, (3, 6, 4, 4)),
}


@pytest.mark.parametrize("between", [nn.Identity, nn.ReLU], ids=["direct", "relu"])
@pytest.mark.parametrize("per", ["filter", "layer"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_network_computes_the_same_in_both_modes(name, per, between):
    torch.manual_seed(0)
    make, norm, shape = LAYERS[name]
    model = nn.Sequential(make(), between(), norm(4, eps=1e-30)).double()
    x = torch.randn(shape, dtype=torch.float64)
    for _ in range(5):
        model(x + torch.randn_like(x))
    frozen = copy.deepcopy(model)
    found = find_scale_invariant(model, x, per=per)
    assert [weight.name for weight in found] == ["0"]
    assert found[0].norms == ((model[2], 0),)
    WeightRescaling(found, per=per).rescale_()
    assert not torch.equal(model[0].weight, frozen[0].weight)
    torch.testing.assert_close(model.eval()(x), frozen.eval()(x), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(model.train()(x), frozen.train()(x), rtol=1e-10, atol=1e-11)
    rows = model[0].weight.detach()
    if per == "layer":
        torch.testing.assert_close(rows.norm(), torch.tensor(2.0).double())
    elif name == "transposed, grouped":
        for group, part in enumerate(rows.split(3)):
            assert group < 2
            torch.testing.assert_close(norms(part.transpose(0, 1)), torch.ones(2).double())
    else:
        rows = rows.transpose(0, 1) if name == "transposed" else rows
        torch.testing.assert_close(rows.flatten(1).norm(dim=1), torch.ones(4).double())


def test_statistics_without_bias_rescaling():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, eps=1e-30)).double()
    x = torch.randn(20, 5).double()
    model(x)
    frozen = copy.deepcopy(model)
    WeightRescaling([(model[0], model[1])], rescale_bias=False).rescale_()
    assert torch.equal(model[0].bias, frozen[0].bias)
    torch.testing.assert_close(model.eval()(x), frozen.eval()(x), rtol=1e-10, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple),
    target=st.floats(0.1, 10),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 1000),
)
def test_norms_are_on_target_and_twice_is_once(shape, target, scale, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    weight = nn.Parameter(weight)
    before = weight.detach().clone()
    rescaling = WeightRescaling([weight], target=target)
    (factor,) = rescaling.rescale_()
    torch.testing.assert_close(
        norms(weight), torch.full((shape[0],), target, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(factor, norms(before) / target, rtol=1e-12, atol=0)
    once = weight.detach().clone()
    rescaling.rescale_()
    torch.testing.assert_close(weight.detach(), once, rtol=1e-13, atol=0)


def test_dead_filters_and_statistics_stay_finite():
    model = network()
    with torch.no_grad():
        model[0].weight[3] = 0
    before = model[1].running_var[3].clone()
    (factor,) = WeightRescaling([(model[0], model[1])]).rescale_()
    assert factor[3] == 1
    assert torch.equal(model[0].weight[3], torch.zeros(8, 3, 3).double())
    assert model[1].running_var[3] == before


# ---------------------------------------------------------------- the optimiser's memory

OPTIMISERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), {"momentum_buffer": 1}),
    "sgd-fused": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True), {"momentum_buffer": 1}),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01, foreach=True), {"exp_avg": 1, "exp_avg_sq": 2}),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
        {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    ),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
        {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
    ),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.01), {"sum": 2}),
    "adadelta": (lambda p: torch.optim.Adadelta(p), {"square_avg": 2, "acc_delta": -2}),
    "adamax": (lambda p: torch.optim.Adamax(p, lr=0.01), {"exp_avg": 1, "exp_inf": 1}),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=0.01), {"exp_avg": 1, "exp_avg_sq": 2}),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_the_optimiser_remembers_follows(name):
    make, powers = OPTIMISERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = make(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().sum().backward()
        optimizer.step()
    layer = model[0]
    states = [
        {key: optimizer.state[parameter][key].clone() for key in powers}
        for parameter in (layer.weight, layer.bias, model[3].weight)
    ]
    others = [parameter.detach().clone() for parameter in model[3].parameters()]
    (factor,) = WeightRescaling(find_followed_by_norm(model)).rescale_(optimizer)
    for key, power in powers.items():
        torch.testing.assert_close(
            optimizer.state[layer.weight][key], states[0][key] * factor[:, None] ** power
        )
        torch.testing.assert_close(optimizer.state[layer.bias][key], states[1][key] * factor**power)
        assert torch.equal(optimizer.state[model[3].weight][key], states[2][key])
    for parameter, other in zip(model[3].parameters(), others, strict=True):
        assert torch.equal(parameter, other)
    if name == "adam":
        untouched = optimizer.state[layer.weight]["exp_avg"].clone()
        WeightRescaling([layer], scale_state=False, target=2.0).rescale_(optimizer)
        assert torch.equal(optimizer.state[layer.weight]["exp_avg"], untouched)


def test_an_unknown_optimiser_must_be_explained():
    layer = nn.Linear(3, 2)

    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["slow"] = torch.ones_like(parameter)
                self.state[parameter]["row"] = torch.ones(1)

    optimizer = Own(layer.parameters())
    for rescaling in (WeightRescaling([layer]),):
        with pytest.raises(ValueError, match="optimizer is a Own, and how its state depends"):
            rescaling.attach(optimizer)
    handle = WeightRescaling([layer], state_powers={"slow": 1}).attach(optimizer)
    before = norms(layer.weight)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[layer.weight]["slow"], before[:, None].expand(2, 3))
    handle.remove()
    with pytest.raises(ValueError, match=r"'row' has shape \(1,\) for a weight of shape \(2, 3\)"):
        WeightRescaling([layer], state_powers={"row": 1}).rescale_(optimizer)
    WeightRescaling([layer], scale_state=False).attach(optimizer)
    optimizer.step()


def test_the_hook_equals_the_plain_call_and_keeps_the_interval():
    models = network(), network()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9) for model in models]
    hooked, plain = (WeightRescaling(find_followed_by_norm(model), interval=3) for model in models)
    handle = hooked.attach(optimizers[0])
    off = []
    for _ in range(7):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        plain.step(optimizers[1])
        off.append(bool((norms(models[0][0].weight) - 1).abs().max() > 1e-9))
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(p, q)
    assert off == [True, True, False, True, True, False, True]
    handle.remove()
    optimizers[0].step()
    assert hooked.steps == 7
    assert [id(p) for p in plain.parameters()] == [id(models[1][0].weight)]


def test_state_dict_and_copies():
    model = network()
    rescaling = WeightRescaling(find_followed_by_norm(model), interval=2)
    rescaling.step()
    file = io.BytesIO()
    torch.save(rescaling.state_dict(), file)
    file.seek(0)
    other = WeightRescaling(find_followed_by_norm(model), interval=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    before = norms(model[0].weight)
    twins = [copy.deepcopy((model, rescaling)), pickle.loads(pickle.dumps((model, rescaling)))]
    other.step()
    assert not torch.equal(norms(model[0].weight), before)
    for twin_model, twin in twins:
        assert repr(twin) == repr(rescaling)
        twin.step()
        assert torch.equal(twin_model[0].weight, model[0].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    weight = nn.Parameter((100 * torch.randn(3, 4000)).to(dtype))
    WeightRescaling([weight]).rescale_()
    torch.testing.assert_close(weight.detach().float().norm(dim=1), torch.ones(3), rtol=2e-3, atol=0)


def test_a_module_that_moved_is_still_rescaled():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))
    rescaling = WeightRescaling([(model[0], model[1])])
    model._apply(lambda tensor: tensor.double())
    model[0].weight = nn.Parameter(torch.randn(2, 3).double())
    rescaling.rescale_()
    torch.testing.assert_close(norms(model[0].weight), torch.ones(2).double())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: WeightRescaling([]), "weights is empty"),
        (lambda m: WeightRescaling(m), "Give find_scale_invariant"),
        (lambda m: WeightRescaling([m[1]]), "weights has a BatchNorm2d"),
        (lambda m: WeightRescaling([m[5].bias]), r"weights has a Parameter of shape \(5,\)"),
        (lambda m: WeightRescaling([(m[5], m[1])]), "5 output units and a BatchNorm2d of 16 channels"),
        (lambda m: WeightRescaling([nn.LazyLinear(3)]), "weights has a LazyLinear"),
        (
            lambda m: WeightRescaling([nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))]),
            "a plain parameter",
        ),
        (lambda m: WeightRescaling([m[0]], target=0), "target=0 must be above 0"),
        (lambda m: WeightRescaling([m[0]], per="row"), "per='row' must be"),
        (lambda m: WeightRescaling([m[0]], interval=0), "interval=0 must be a whole number"),
        (lambda m: WeightRescaling([m[0]]).attach(m), r"must be a torch.optim.Optimizer"),
        (lambda m: find_scale_invariant(m), "inputs is empty and forward is None"),
        (lambda m: find_scale_invariant(m, batch()[0], per="row"), "per='row' must be"),
        (lambda m: find_scale_invariant(m, batch()[0], tolerance=0), "tolerance=0 must be above 0"),
        (lambda m: find_followed_by_norm(m, order="any"), "order='any' must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(network())
