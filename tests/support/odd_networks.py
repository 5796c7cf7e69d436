"""Networks that write to whatever a forward pass can reach: weights, buffers, attributes, inputs, modules."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

Build = Callable[[], nn.Module]
WIDTH, CLASSES = 6, 3


class Noisy(nn.Module):
    """Functional dropout, a counter and a list of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.seen = 0, []
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.seen.append(float(x.mean()))
        return self.head(self.norm(F.dropout(x, 0.3, self.training)))


class OwnNorm(nn.BatchNorm1d):
    """A subclass with a forward of its own that counts."""

    def forward(self, input: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(input) + 0.0


class HandNorm(nn.Module):
    """Running statistics in buffers, frozen parameters or plain attributes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        for name, value in (("running_mean", torch.zeros(WIDTH)), ("running_var", torch.ones(WIDTH))):
            if kind == "buffer":
                self.register_buffer(name, value)
            elif kind == "parameter":
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


class ActNorm(nn.Module):
    """Parameters set by the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.done = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.done:
            with torch.no_grad():
                self.bias.copy_(-x.mean(0))
                self.scale.data = 1 / x.std(0)
            self.done = True
        return (x + self.bias) * self.scale


class MaxNorm(nn.Linear):
    """Weights held to a largest norm while the network trains."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.weight.data.renorm_(2, 0, 0.3)
        return super().forward(input)


class Resized(nn.Module):
    """Buffers made, replaced and resized in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", None)
        self.register_buffer("table", torch.zeros(0))
        self.register_buffer("index", torch.arange(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.positions = torch.ones(x.shape[1])
        if not hasattr(self, "cache"):
            self.register_buffer("cache", x.mean(0))
        self.table.resize_(x.shape[1]).fill_(1.0)
        self.index = self.index + 0
        return x * self.positions * self.table


class InPlace(nn.Module):
    """Overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.mul_(0.5).add_(1.0), inplace=True)


class Adapter(nn.Linear):
    """Merges a low-rank update into its weight in evaluation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.randn(2, inputs))
        self.up = nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self


class Stubborn(nn.Module):
    """Refuses to be copied, and holds a lock, a generator and an open file."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.endless = threading.Lock(), (n for n in range(3))
        self.body, self.norm, self.log = nn.Linear(WIDTH, CLASSES), nn.BatchNorm1d(WIDTH), {}

    def __deepcopy__(self, memo: Any) -> Stubborn:
        raise RuntimeError("not to be copied")

    def __getstate__(self) -> Any:
        raise TypeError("not to be pickled")

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.log[len(self.log)] = x.shape
        return self.body(self.norm(x))


class Grows(nn.Module):
    """Makes a module in its first forward, keeps its parent by a weak reference and its own generators."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = None, nn.BatchNorm1d(WIDTH)
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(1)
        self.me = weakref.ref(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.head is None:
            self.head = nn.Linear(WIDTH, CLASSES)
        noise = torch.randn(x.shape, generator=self.torch_generator) * float(self.numpy_generator.random())
        self.me().last = x
        return self.head(self.norm(x + 0.1 * noise))


class Shared(nn.Module):
    """One norm and one weight at two places, and a state that both branches hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight
        self.norm = self.again = nn.BatchNorm1d(WIDTH)
        self.head, self.state = nn.Linear(WIDTH, CLASSES), {"calls": 0}
        self.a.state = self.b.state = self.state

    def forward(self, x: Tensor) -> Tensor:
        self.a.state["calls"] += 1
        return self.head(self.again(self.b(self.norm(self.a(x)))))


def _hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))
    seen: list[Any] = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    net[1].register_forward_hook(lambda module, inputs, output: setattr(net, "features", output))

    def once(module: nn.Module, inputs: Any) -> None:
        handle.remove()

    handle = net[2].register_forward_pre_hook(once)
    plain = net[2].forward
    net[2].forward = lambda x: plain(x) * 2.0
    return net


def _tail(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Dropout(0.3), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))


def _compiled() -> nn.Module:
    inner = torch.compile(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)), backend="eager")
    return torch.compile(nn.Sequential(inner, nn.Linear(WIDTH, CLASSES)), backend="eager")


NETWORKS: dict[str, Build] = {
    "plain": lambda: _tail(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
    "functional noise": Noisy,
    "subclass of a norm": lambda: nn.Sequential(OwnNorm(WIDTH), nn.Linear(WIDTH, CLASSES)),
    "statistics in buffers": lambda: _tail(HandNorm("buffer")),
    "statistics in parameters": lambda: _tail(HandNorm("parameter")),
    "statistics in attributes": lambda: _tail(HandNorm("attribute")),
    "data-dependent initialisation": lambda: _tail(ActNorm()),
    "largest norm": lambda: _tail(MaxNorm(WIDTH, WIDTH)),
    "buffers made in forward": lambda: _tail(Resized()),
    "inputs overwritten": lambda: _tail(InPlace()),
    "adapter": lambda: _tail(Adapter(WIDTH, WIDTH)),
    "spectral norm": lambda: _tail(spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "uncopyable": Stubborn,
    "modules made in forward": Grows,
    "shared modules": Shared,
    "hooks": _hooked,
    "parametrisation": lambda: _tail(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "compiled": _compiled,
    "data parallel": lambda: nn.DataParallel(_tail(nn.Linear(WIDTH, WIDTH))),
}
