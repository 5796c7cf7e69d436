"""The four states of a live model: noise and norms switched apart, and nothing written that must not be."""

from __future__ import annotations

import copy
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import varshift as vs

sys.path.insert(0, str(Path(__file__).parent / "support"))
from hand_norms import NORMS, batch_for

NAMES = {
    (True, "batch"): "train",
    (False, "batch"): "clean",
    (True, "running"): "sampling",
    (False, "running"): "eval",
}


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)

    def forward(self, x):
        return self.last(F.dropout(self.norm(self.linear(x)), 0.5, self.training))


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(0.5) * 2


class HandNorm(nn.Module):
    """Statistics under names of its own."""

    def __init__(self, channels=6):
        super().__init__()
        self.register_buffer("ema_mean", torch.zeros(channels))
        self.register_buffer("ema_var", torch.ones(channels))

    def forward(self, x):
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.ema_mean.lerp_(mean.detach(), 0.1)
            self.ema_var.lerp_(var.detach(), 0.1)
        else:
            mean, var = self.ema_mean, self.ema_var
        return (x - mean) / (var + 1e-5).sqrt()


class AttributeNorm(HandNorm):
    """Statistics that are plain attributes."""

    def __init__(self, channels=6):
        nn.Module.__init__(self)
        self.ema_mean, self.ema_var = torch.zeros(channels), torch.ones(channels)

    def forward(self, x):
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.ema_mean = 0.9 * self.ema_mean + 0.1 * mean.detach()
            self.ema_var = 0.9 * self.ema_var + 0.1 * var.detach()
            return (x - mean) / (var + 1e-5).sqrt()
        return (x - self.ema_mean) / (self.ema_var + 1e-5).sqrt()


class AliasedNorm(HandNorm):
    """Writes into its statistics by another name."""

    def forward(self, x):
        mean, var = self.ema_mean, self.ema_var
        if self.training:
            mean.lerp_(x.mean(0).detach(), 0.1)
            var.lerp_(x.var(0).detach(), 0.1)
            mean, var = x.mean(0), x.var(0)
        return (x - mean) / (var + 1e-5).sqrt()


class DictionaryNorm(nn.Module):
    """Statistics in a dictionary."""

    def __init__(self):
        super().__init__()
        self.held = {"mean": torch.zeros(6), "var": torch.ones(6)}

    def forward(self, x):
        if not self.training:
            return (x - self.held["mean"]) / (self.held["var"] + 1e-5).sqrt()
        self.held["mean"].lerp_(x.mean(0).detach(), 0.1)
        self.held["var"].lerp_(x.var(0).detach(), 0.1)
        return (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()


class GaussianNoise(nn.Module):
    """Noise with a buffer, which is no statistic."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sigma", torch.tensor([0.5]))

    def forward(self, x):
        return x.clone().add_(self.sigma * torch.randn_like(x)) if self.training else x


class NormAndNoise(nn.Module):
    """One flag for a norm that it calls itself and for its noise."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training)
        return F.dropout(x, 0.5, self.training)


class NoisyBatchNorm(nn.BatchNorm1d):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = (
            nn.BatchNorm1d(6),
            nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True),
        )

    def forward(self, x):
        x = self.norm(x)[:, None].expand(-1, 4, -1)
        return self.attention(x, x, x)[0].mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.rnn = nn.BatchNorm1d(6), nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.rnn(self.norm(x)[:, None].expand(-1, 3, -1))[0].mean(1)


def sequential(*modules):
    return nn.Sequential(nn.Linear(6, 6), *modules, nn.Linear(6, 6))


NETWORKS = {
    "dropout": lambda: sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)),
    "functional": FunctionalDropout,
    "drop path": lambda: sequential(nn.BatchNorm1d(6), DropPath()),
    "hand norm": lambda: sequential(HandNorm(), nn.Dropout(0.5)),
    "attribute norm": lambda: sequential(AttributeNorm(), nn.Dropout(0.5)),
    "aliased norm": lambda: sequential(AliasedNorm(), nn.Dropout(0.5)),
    "dictionary norm": lambda: sequential(DictionaryNorm(), nn.Dropout(0.5)),
    "gaussian": lambda: sequential(nn.BatchNorm1d(6), GaussianNoise()),
    "one flag": lambda: sequential(NormAndNoise()),
    "subclass": lambda: sequential(NoisyBatchNorm(6)),
    "attention": Attention,
    "recurrent": Recurrent,
    "synchronised": lambda: sequential(nn.SyncBatchNorm(6), nn.Dropout(0.5)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(32, 6) * 2 + 1)
    return model.eval()


def state(model):
    attributes = {
        f"{name}.{key}": value.clone()
        for name, module in model.named_modules()
        for key, value in {**vars(module), **vars(module).get("held", {})}.items()
        if isinstance(value, torch.Tensor)
    }
    return {**{name: value.clone() for name, value in model.state_dict().items()}, **attributes}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def flags(model):
    return [module.training for module in model.modules()]


X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1)) * 3 - 1


@pytest.mark.parametrize(("noise", "norms"), NAMES)
def test_noise_and_norms_are_what_was_asked_for(network, noise, norms):
    before, found = state(network), flags(network)
    with torch.no_grad(), vs.mode(network, noise=noise, norms=norms) as mode:
        draws = [network(X) for _ in range(3)]
        alone = network(X[:8])
    assert mode.name == NAMES[noise, norms]
    assert (not torch.equal(draws[0], draws[1])) is noise
    if norms == "running":
        assert same(before, state(network))
        if not noise:
            torch.testing.assert_close(alone, draws[0][:8])
    else:
        assert not same(before, state(network))  # they learn
        if not noise:
            assert not torch.allclose(alone, draws[0][:8])
    assert flags(network) == found


def test_a_hundred_draws_leave_every_bit(network):
    before = state(network)
    with torch.no_grad(), vs.mode(network, noise=True, norms="running"):
        draws = torch.stack([network(X[:4]) for _ in range(100)])
    assert same(before, state(network))
    assert bool((draws.std(0) > 0).any())
    # On average the draws stay near the deployed output: it is the noise alone that moves them.
    with torch.no_grad():
        output = network(X[:4])
    assert float((draws.mean(0) - output).abs().mean()) < float(draws.std(0).mean())


def test_sampling_takes_gradients(network):
    with vs.mode(network, noise=True, norms="running"):
        network(X).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in network.named_parameters())


def test_for_good_and_back():
    model = NETWORKS["dropout"]().eval()
    handle = vs.mode(model, noise=True, norms="running")
    assert (model[1].training, model[2].training) == (False, True)
    assert handle.active
    assert repr(handle) == "<Mode sampling: noise on, running statistics>"
    handle.undo()
    handle.close()
    assert not any(flags(model))
    assert "undone" in repr(handle)
    with handle:  # entered again
        assert model[2].training
    assert not any(flags(model))


def test_states_nest_and_may_end_in_any_order():
    model = NETWORKS["dropout"]().eval()
    outer = vs.mode(model, noise=True, norms="batch")
    inner = vs.mode(model, noise=False, norms="batch")
    outer.undo()
    assert (model[1].training, model[2].training) == (True, False)  # the inner one still rules
    inner.undo()
    assert not any(flags(model))
    with vs.mode(model, noise=True, norms="running"):
        with vs.mode(model, noise=False, norms="running"):
            assert not any(flags(model))
        assert model[2].training
    assert not any(flags(model))


def test_nested_states_of_a_module_with_one_flag():
    model = NETWORKS["one flag"]().eval()
    before = state(model)
    with torch.no_grad(), vs.mode(model, noise=False, norms="batch"):
        with vs.mode(model, noise=True, norms="running"):
            model(X)
            assert same(before, state(model))
        model(X)
        assert not same(before, state(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_errors_inside_end_it():
    model = NETWORKS["one flag"]().eval()
    with pytest.raises(RuntimeError), vs.mode(model, noise=True, norms="running"):
        model(torch.randn(3, 5))
    assert not any(flags(model))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch._C._len_torch_function_stack() == 0


def test_a_train_method_that_fails_leaves_the_flags():
    class Refuses(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            if mode:
                raise ValueError("not now")
            return self

    model = Refuses(nn.BatchNorm1d(6), nn.Dropout(0.5)).eval()
    with pytest.raises(ValueError, match="not now"):
        vs.mode(model, noise=True, norms="running")
    assert not any(flags(model))


@pytest.mark.parametrize("norms", ["batch", "running"])
def test_frozen_norms_stay_frozen(norms):
    class Held(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].training = False
            return self

    held = Held(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6))
    for model in (held.eval(), vs.nn.FrozenBatchNorm(6), _partly_frozen()):
        kept = state(model[0]) if isinstance(model, nn.Sequential) else state(model)
        for noise in (True, False):
            with torch.no_grad(), vs.mode(model, noise=noise, norms=norms):
                model(X)
        assert same(kept, state(model[0]) if isinstance(model, nn.Sequential) else state(model))
    assert norms == "running" or int(held[2].num_batches_tracked) == 2


def _partly_frozen():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6)).train()
    model[0].eval()
    return model


def test_a_norm_by_hand_with_noise_under_one_flag_is_refused_in_words():
    class Tangled(HandNorm):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    model = nn.Sequential(nn.Linear(6, 6), Tangled()).eval()
    with pytest.raises(vs.ModelError, match=r"module '1' \(Tangled\).*module of its own"):
        vs.mode(model, noise=True, norms="running")
    assert not any(flags(model))
    for noise, norms in ((True, "batch"), (False, "running")):  # these ask for both alike
        with vs.mode(model, noise=noise, norms=norms):
            assert model[1].training is noise


def test_results_that_are_kept_are_no_statistics():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.features = nn.Linear(6, 6), None

        def forward(self, x):
            x = F.dropout(self.linear(x), 0.5, self.training)
            self.features = x.detach()
            return x

    model = Keeps().eval()
    model(X)
    with vs.mode(model, noise=True, norms="running"):
        assert not torch.equal(model(X), model(X))


def test_compiled_models_and_wrappers():
    model = NETWORKS["dropout"]().eval()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    with torch.no_grad():
        compiled(X)
        before = state(compiled)
        with vs.mode(compiled, noise=True, norms="running"):
            assert not torch.equal(compiled(X), compiled(X))
        assert same(before, state(compiled))
        assert torch.equal(compiled(X), compiled(X))
    wrapped = nn.DataParallel(model)
    with vs.mode(wrapped, noise=True, norms="running"):
        assert (wrapped.training, model[1].training, model[2].training) == (True, False, True)
    assert wrapped.training is True  # as it was
    assert not any(flags(model))


def test_two_threads_with_models_of_their_own():
    failures = []

    def work(seed):
        torch.manual_seed(seed)
        model = NETWORKS["functional"]().eval()
        before = state(model)
        for _ in range(30):
            with torch.no_grad(), vs.mode(model, noise=True, norms="running"):
                model(X)
            if any(flags(model)) or not same(before, state(model)):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"noise": "on", "norms": "batch"}, "noise is 'on': expected True or False"),
        ({"noise": 1, "norms": "batch"}, "noise is 1"),
        ({"noise": True, "norms": "eval"}, "norms is 'eval': expected 'batch' or 'running'"),
        ({"noise": True, "norms": None}, "norms is None"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        vs.mode(nn.Linear(2, 2), **arguments)


def test_what_is_no_model_is_refused():
    with pytest.raises(vs.ModelError, match=r"expected a torch\.nn\.Module"):
        vs.mode("resnet50", noise=True, norms="running")


@pytest.mark.parametrize("name", NORMS)
def test_no_norm_written_by_hand_writes_while_it_is_sampled(name):
    torch.manual_seed(0)
    build, shape, *_ = NORMS[name]

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop = build(), nn.Dropout(0.5)

        def forward(self, *inputs):
            return self.drop(self.inner(*inputs))

    model, batch = Noisy(), batch_for(shape)
    batch = batch if isinstance(batch, tuple) else (batch,)
    with torch.no_grad():
        model.train()(*batch)
        model.eval()
        before = everything(model)
        with vs.mode(model, noise=True, norms="running"):
            draws = [model(*batch) for _ in range(3)]
    assert same(before, everything(model))
    assert not torch.equal(draws[0], draws[1])


def everything(model):
    """All tensors that modules hold, in containers, too."""
    held = {}
    for path, module in model.named_modules():
        for key, value in {**vars(module), **module._buffers, **module._parameters}.items():
            for item, tensor in value.items() if isinstance(value, dict) else ((None, value),):
                if isinstance(tensor, torch.Tensor):
                    held[path, key, item] = tensor.detach().clone()
    return held
