"""Batch norm preconditioning beside an optimiser: hooks, scalers, compilers, copies, arguments."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from varshift.optim import AdaptiveGradientClipping, BatchNormPreconditioner


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
    """A toy: scales from .1 to 10, logistic loss, full batches."""
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
    assert not preconditioner._banks[0].pending().any()
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
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 2, device="meta"))
    preconditioner = BatchNormPreconditioner(model, decay=0.0)
    assert preconditioner.mean("0").is_meta
    model.to_empty(device="cpu")
    for layer in model:
        layer.reset_parameters()
    x = 3 + torch.randn(16, 3)
    model(x).sum().backward()
    preconditioner.step()
    torch.testing.assert_close(preconditioner.mean("0").float(), x.mean(0))
    torch.testing.assert_close(preconditioner.mean("1").float(), model[0](x).mean(0))


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
