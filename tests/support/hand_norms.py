"""Norms written by hand in many ways, and modules that look like norms and are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

C = 6
EPS = 1e-5


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.var(0, unbiased=False)


class Lerped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ema_mean", torch.zeros(C))
        self.register_buffer("ema_var", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.ema_mean) / torch.sqrt(self.ema_var + EPS)
        mean, var = moments(x)
        self.ema_mean.lerp_(mean.detach(), 0.1)
        self.ema_var.lerp_(var.detach(), 0.1)
        return (x - mean) / torch.sqrt(var + EPS)


class ScaledAndAdded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.zeros(1, C))
        self.register_buffer("v", torch.ones(1, C))
        self.gain, self.shift = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        m, v = self.m, self.v
        if self.training:
            m, v = x.mean(0, keepdim=True), x.var(0, keepdim=True)
            with torch.no_grad():
                self.m.mul_(0.99).add_(m, alpha=0.01)
                self.v.mul_(0.99).add_(v, alpha=0.01)
        return (x - m) * torch.rsqrt(v + EPS) * self.gain + self.shift


class Assigned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stat_a", torch.zeros(C))
        self.register_buffer("stat_b", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stat_a, self.stat_b
        if self.training:
            a, b = moments(x)
            self.stat_a = 0.9 * self.stat_a + 0.1 * a.detach()
            self.stat_b = 0.9 * self.stat_b + 0.1 * b.detach()
        return (x - a) / (b + EPS) ** 0.5


class FrozenParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Parameter(torch.zeros(C), requires_grad=False)
        self.power = nn.Parameter(torch.ones(C), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.average) / (self.power + EPS).sqrt()
        a, b = moments(x)
        with torch.no_grad():
            self.average.copy_(0.8 * self.average + 0.2 * a)
            self.power.copy_(0.8 * self.power + 0.2 * b)
        return (x - a) / (b + EPS).sqrt()


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu, self.nu = torch.zeros(C), torch.ones(C)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.mu) / (self.nu + EPS).sqrt()
        a, b = moments(x)
        with torch.no_grad():
            self.mu += 0.1 * (a - self.mu)
            self.nu += 0.1 * (b - self.nu)
        return (x - a) / (b + EPS).sqrt()


class AssignedAttributes(Attributes):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.mu) / (self.nu + EPS).sqrt()
        a, b = moments(x)
        self.mu = (0.9 * self.mu + 0.1 * a).detach()
        self.nu = (0.9 * self.nu + 0.1 * b).detach()
        return (x - a) / (b + EPS).sqrt()


class DataAssigned(Lerped):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.ema_mean) / (self.ema_var + EPS).sqrt()
        a, b = moments(x)
        self.ema_mean.data = self.ema_mean.data * 0.9 + a.data * 0.1
        self.ema_var.data = self.ema_var.data * 0.9 + b.data * 0.1
        return (x - a) / (b + EPS).sqrt()


class Kept(nn.Module):
    """Keeps the variance in another form."""

    def __init__(self, into: Callable[[Tensor], Tensor], divisor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.into, self.divisor = into, divisor
        self.register_buffer("p", torch.zeros(C))
        self.register_buffer("q", into(torch.ones(C)))

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.p, self.q
        if self.training:
            p, var = moments(x)
            q = self.into(var)
            with torch.no_grad():
                self.p.lerp_(p, 0.1)
                self.q.lerp_(q, 0.1)
        return (x - p) / self.divisor(q)


class SecondMoment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(C))
        self.register_buffer("second", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first, self.second
        if self.training:
            first, second = x.mean(0), x.pow(2).mean(0)
            with torch.no_grad():
                self.first.mul_(0.9).add_(0.1 * first)
                self.second.mul_(0.9).add_(0.1 * second)
        return (x - first) / (second - first**2 + EPS).sqrt()


class RunningPower(nn.Module):
    """Divides by a running root mean square and subtracts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        power = self.power
        if self.training:
            power = x.square().mean(0)
            self.power.lerp_(power.detach(), 0.1)
        return x * torch.rsqrt(power + EPS)


class ChannelsLast(Lerped):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        mean, var = self.ema_mean, self.ema_var
        if self.training:
            mean, var = moments(flat)
            self.ema_mean.lerp_(mean.detach(), 0.1)
            self.ema_var.lerp_(var.detach(), 0.1)
        return (x - mean) / torch.sqrt(var + EPS)


class EachElement(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(C, 2, 2))
        self.register_buffer("width", torch.ones(C, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        centre, width = self.centre, self.width
        if self.training:
            centre, width = moments(x)
            self.centre.lerp_(centre.detach(), 0.1)
            self.width.lerp_(width.detach(), 0.1)
        return (x - centre) / torch.sqrt(width + EPS)


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("width", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        centre, width = self.centre, self.width
        if self.training:
            centre, width = x.mean(), x.var()
            self.centre.lerp_(centre.detach(), 0.1)
            self.width.lerp_(width.detach(), 0.1)
        return (x - centre) / torch.sqrt(width + EPS)


class DomainRows(nn.Module):
    def __init__(self, domain: int = 1) -> None:
        super().__init__()
        self.domain = domain
        self.register_buffer("rows_a", torch.zeros(3, C))
        self.register_buffer("rows_b", torch.ones(3, C))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.rows_a[self.domain], self.rows_b[self.domain]
        if self.training:
            with torch.no_grad():
                mean, var = moments(x)
                a.lerp_(mean, 0.1)
                b.lerp_(var, 0.1)
            a, b = moments(x)
        return (x - a) / (b + EPS).sqrt()


class KindRows(nn.Module):
    """One row of statistics for each kind of sample."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.zeros(3, C))
        self.register_buffer("v", torch.ones(3, C))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        m, v = self.m, self.v
        if self.training:
            n = torch.zeros(3).index_add_(0, kind, torch.ones(len(x))).clamp(min=1)[:, None]
            m = torch.zeros_like(m).index_add_(0, kind, x) / n
            v = torch.zeros_like(v).index_add_(0, kind, (x - m[kind]) ** 2) / n
            with torch.no_grad():
                present = kind.unique()
                self.m[present] = 0.9 * self.m[present] + 0.1 * m[present]
                self.v[present] = 0.9 * self.v[present] + 0.1 * v[present]
        return (x - m[kind]) / (v[kind] + EPS).sqrt()


class TorchNamedRows(nn.Module):
    """The same under torch's names, written without any write to a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3, C))
        self.register_buffer("running_var", torch.ones(3, C))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            n = torch.zeros(3).scatter_add(0, kind, torch.ones(len(x))).clamp(min=1)[:, None]
            index = kind[:, None].expand_as(x)
            mean = torch.zeros_like(mean).scatter_add(0, index, x) / n
            var = torch.zeros_like(var).scatter_add(0, index, x * x) / n - mean**2
            present = kind.unique()
            with torch.no_grad():
                for state, new in ((self.running_mean, mean), (self.running_var, var)):
                    state[present] = 0.9 * state[present] + 0.1 * new[present]
        return (x - mean[kind]) / (var.clamp(min=EPS)[kind]).sqrt()


class Kinds(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(4, C), norm

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        return self.norm(self.inner(x), kind)


class FloatCounter(Lerped):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.ema_mean) / (self.ema_var + EPS).sqrt()
        mean, var = moments(x)
        with torch.no_grad():
            self.seen += 1
            self.ema_mean += (mean - self.ema_mean) / self.seen
            self.ema_var += (var - self.ema_var) / self.seen
        return (x - mean) / (var + EPS).sqrt()


class Pooled(nn.Module):
    """Pools counts, means and variances as reinforcement learning does for observations."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(C))
        self.register_buffer("var", torch.ones(C))
        self.register_buffer("count", torch.tensor(1e-4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                mean, var, n = x.mean(0), x.var(0, unbiased=False), x.shape[0]
                delta, total = mean - self.mean, self.count + n
                squares = self.var * self.count + var * n + delta**2 * self.count * n / total
                self.mean.copy_(self.mean + delta * n / total)
                self.var.copy_(squares / total)
                self.count.copy_(total)
        return ((x - self.mean) / (self.var + EPS).sqrt()).clamp(-10, 10)


class Sums(nn.Module):
    """Accumulates sums, as simulators of meshes do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(C))
        self.register_buffer("squares", torch.zeros(C))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.total += x.sum(0)
                self.squares += x.square().sum(0)
                self.count += x.shape[0]
        n = self.count.clamp(min=1)
        mean = self.total / n
        return (x - mean) / (self.squares / n - mean**2).clamp(min=EPS).sqrt()


class InsideBlock(nn.Module):
    """A block whose own forward normalises what its convolution returns."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(C, C)
        self.register_buffer("e1", torch.zeros(C))
        self.register_buffer("e2", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.mix(x))
        a, b = self.e1, self.e2
        if self.training:
            a, b = moments(y)
            self.e1.lerp_(a.detach(), 0.1)
            self.e2.lerp_(b.detach(), 0.1)
        return x + (y - a) / (b + EPS).sqrt()


class Tracker(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.full((C,), value))

    def forward(self, new: Tensor) -> Tensor:
        if self.training:
            self.value.lerp_(new.detach(), 0.1)
            return new
        return self.value


class Children(nn.Module):
    """Leaves the averages to child modules."""

    def __init__(self) -> None:
        super().__init__()
        self.location, self.scale = Tracker(0.0), Tracker(1.0)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.location(x.mean(0)), self.scale(x.var(0))
        return (x - a) / (b + EPS).sqrt()


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"a": torch.zeros(C), "b": torch.ones(C)}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.state["a"]) / (self.state["b"] + EPS).sqrt()
        a, b = moments(x)
        with torch.no_grad():
            self.state["a"].lerp_(a, 0.1)
            self.state["b"].lerp_(b, 0.1)
        return (x - a) / (b + EPS).sqrt()


class Renorm(Lerped):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.ema_mean) / (self.ema_var + EPS).sqrt()
        mean, var = moments(x)
        std, running = (var + EPS).sqrt(), (self.ema_var + EPS).sqrt()
        r = (std / running).clamp(1 / 3, 3).detach()
        d = ((mean - self.ema_mean) / running).clamp(-5, 5).detach()
        with torch.no_grad():
            self.ema_mean.lerp_(mean, 0.1)
            self.ema_var.lerp_(var, 0.1)
        return (x - mean) / std * r + d


class Instances(nn.Module):
    """Averages the statistics of single samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("im", torch.zeros(C))
        self.register_buffer("iv", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.im[:, None, None]) / (self.iv[:, None, None] + EPS).sqrt()
        m, v = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
        self.im.lerp_(m.detach().mean(0).flatten(), 0.1)
        self.iv.lerp_(v.detach().mean(0).flatten(), 0.1)
        return (x - m) / (v + EPS).sqrt()


class Operator(nn.Module):
    """Hands attributes to torch's operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.zeros(C), torch.ones(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.a, self.b, training=self.training, momentum=0.2)


class OperatorInEval(Lerped):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.ema_mean, self.ema_var)
        mean, var = moments(x)
        self.ema_mean.lerp_(mean.detach(), 0.1)
        self.ema_var.lerp_(var.detach(), 0.1)
        return (x - mean) / (var + EPS).sqrt()


class Two(nn.Module):
    """Two norms in one module."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a1", "a2"):
            self.register_buffer(name, torch.zeros(C))
        for name in ("b1", "b2"):
            self.register_buffer(name, torch.ones(C))

    def norm(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if not self.training:
            return (x - a) / (b + EPS).sqrt()
        mean, var = moments(x)
        a.lerp_(mean.detach(), 0.1)
        b.lerp_(var.detach(), 0.1)
        return (x - mean) / (var + EPS).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.norm(x, self.a1, self.b1)), self.a2, self.b2)


class MovingRoot(nn.Module):
    """Averages variances and keeps their root: no average of what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(C))
        self.register_buffer("scale", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.location) / (self.scale + EPS)
        mean, var = moments(x)
        with torch.no_grad():
            self.location.lerp_(mean, 0.1)
            self.scale.copy_((0.9 * self.scale**2 + 0.1 * var).sqrt())
        return (x - mean) / (var.sqrt() + EPS)


class Whitening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(C))
        self.register_buffer("matrix", torch.eye(C))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.centre) @ self.matrix
        mean = x.mean(0)
        rest = x - mean
        values, vectors = torch.linalg.eigh(rest.T @ rest / len(x) + 0.1 * torch.eye(C))
        matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        self.centre.lerp_(mean.detach(), 0.1)
        self.matrix.lerp_(matrix.detach(), 0.1)
        return rest @ matrix


class MeanOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.offset
        mean = x.mean(0)
        self.offset.lerp_(mean.detach(), 0.1)
        return x - mean


class FrozenMoving(nn.Module):
    """A frozen norm with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("g", 1.0), ("s", 0.0), ("mm", 0.0), ("mv", 1.0)):
            self.register_buffer(name, torch.full((C,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.g * (self.mv + EPS).rsqrt()
        return x * scale + (self.s - self.mm * scale)


class OutOfPlaceOnInput(Lerped):
    """Works in place on what it is handed."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        if not self.training:
            return x.sub_(self.ema_mean).div_((self.ema_var + EPS).sqrt())
        mean, var = moments(x)
        self.ema_mean.lerp_(mean.detach(), 0.1)
        self.ema_var.lerp_(var.detach(), 0.1)
        return x.sub_(mean).div_((var + EPS).sqrt())


def after_linear(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, C), *layers, nn.Linear(C, 3))


def after_conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, C, 3), *layers, nn.Flatten(), nn.Linear(C * 4, 3))


ROWS = (5, 4)
IMAGES = (5, 3, 4, 4)
WORDS = (5, 7, 4)


def kinds() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


# Name: how to build it, the shape of its input (or a function), the form of its variance, and whether it can
# be measured.
NORMS: dict[str, tuple[Callable[[], nn.Module], Any, str, bool]] = {
    "lerped": (lambda: after_linear(Lerped()), ROWS, "variance", True),
    "scaled and added": (lambda: after_linear(ScaledAndAdded()), ROWS, "variance", True),
    "assigned": (lambda: after_linear(Assigned()), ROWS, "variance", True),
    "frozen parameters": (lambda: after_linear(FrozenParameters()), ROWS, "variance", True),
    "attributes": (lambda: after_linear(Attributes()), ROWS, "variance", True),
    "assigned attributes": (lambda: after_linear(AssignedAttributes()), ROWS, "variance", True),
    "data assigned": (lambda: after_linear(DataAssigned()), ROWS, "variance", True),
    "deviation": (
        lambda: after_linear(Kept(lambda v: (v + EPS).sqrt(), lambda q: q)), ROWS, "deviation", True,
    ),
    "inverse deviation": (
        lambda: after_linear(Kept(lambda v: (v + 1e-3).rsqrt(), torch.reciprocal)),
        ROWS, "inverse_deviation", True,
    ),
    "log variance": (
        lambda: after_linear(Kept(lambda v: (v + EPS).log(), lambda q: (q / 2).exp())),
        ROWS, "log_variance", True,
    ),
    "second moment": (lambda: after_linear(SecondMoment()), ROWS, "second_moment", True),
    "running power": (lambda: after_linear(RunningPower()), ROWS, "second_moment", True),
    "channels last": (lambda: after_linear(ChannelsLast()), WORDS, "variance", True),
    "each element": (lambda: after_conv(EachElement()), IMAGES, "variance", True),
    "one number": (lambda: after_linear(OneNumber()), ROWS, "variance", True),
    "domain rows": (lambda: after_linear(DomainRows()), ROWS, "variance", True),
    "kind rows": (lambda: Kinds(KindRows()), kinds, "variance", True),
    "kind rows of torch's names": (lambda: Kinds(TorchNamedRows()), kinds, "variance", True),
    "float counter": (lambda: after_linear(FloatCounter()), ROWS, "variance", True),
    "pooled": (lambda: after_linear(Pooled()), ROWS, "variance", True),
    "sums": (lambda: after_linear(Sums()), ROWS, "variance", False),
    "inside a block": (lambda: after_linear(InsideBlock()), ROWS, "variance", True),
    "children": (lambda: after_linear(Children()), ROWS, "variance", True),
    "dictionary": (lambda: after_linear(Dictionary()), ROWS, "variance", True),
    "renorm": (lambda: after_linear(Renorm()), ROWS, "variance", True),
    "instances": (lambda: after_conv(Instances()), IMAGES, "variance", True),
    "operator": (lambda: after_linear(Operator()), ROWS, "variance", True),
    "operator in eval": (lambda: after_linear(OperatorInEval()), ROWS, "variance", True),
    "two": (lambda: after_linear(Two()), ROWS, "variance", True),
    "moving root": (lambda: after_linear(MovingRoot()), ROWS, "variance", False),
    "whitening": (lambda: after_linear(Whitening()), ROWS, "variance", False),
    "mean only": (lambda: after_linear(MeanOnly()), ROWS, "variance", False),
    "frozen": (lambda: after_linear(FrozenMoving()), ROWS, "variance", True),
    "in place": (lambda: after_linear(OutOfPlaceOnInput()), ROWS, "variance", True),
}  # fmt: skip


class Codebook(nn.Module):
    """Vector quantisation with codes that are averages of what they stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(5, C))
        self.register_buffer("usage", torch.ones(5))
        self.register_buffer("sums", torch.randn(5, C))

    def forward(self, x: Tensor) -> Tensor:
        nearest = ((x[:, None] - self.codes) ** 2).sum(-1).argmin(1)
        if self.training:
            hot = F.one_hot(nearest, 5).to(x.dtype)
            with torch.no_grad():
                self.usage.mul_(0.9).add_(hot.sum(0), alpha=0.1)
                self.sums.mul_(0.9).add_(hot.T @ x, alpha=0.1)
                self.codes.copy_(self.sums / self.usage[:, None])
        return x + (self.codes[nearest] - x).detach()


class Threshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.level.lerp_(x.mean(0).detach(), 0.1)
        return x * (x > self.level)


class Centres(nn.Module):
    """Centre loss: the centres follow the features, which stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.centres.lerp_(x.mean(0).detach(), 0.1)
        _ = ((x - self.centres) ** 2).mean()  # added to the loss
        return x


class Monitor(nn.Module):
    """Reports what it sees under the names of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(C))
        self.register_buffer("running_var", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.mean(0).detach(), 0.1)
            self.running_var.lerp_(x.var(0).detach(), 0.1)
        return x


class InputScaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((4,), 0.4))
        self.register_buffer("pixel_std", torch.full((4,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.pixel_mean) / self.pixel_std


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.usual.lerp_(x.mean(0).detach(), 0.1)
        return x + self.usual


class Total(nn.Module):
    """Adds what it saw so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(C))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total += x.sum(0).detach()
            self.count += len(x)
        return x + self.total / self.count.clamp(min=1)


class Largest(nn.Module):
    """Scales by a running maximum, as for integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale.lerp_(x.abs().amax(0).detach(), 0.1)
        return torch.round(x / self.scale * 127) * self.scale / 127


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(C, C), nn.Linear(C, C)
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
            return self.student(x)
        return self.teacher(x)


class Queue(nn.Module):
    """Keeps the last features as negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.randn(8, C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.memory[: len(x)] = F.normalize(x, dim=1)
        return torch.cat([x, x @ self.memory.T], 1)[:, :C]


class Balance(nn.Module):
    """A bias that evens out how often each expert is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            load = F.one_hot((x + self.bias).argmax(1), C).to(x.dtype).mean(0)
            with torch.no_grad():
                self.bias += 0.01 * torch.sign(load.mean() - load)
        return (x + self.bias).softmax(1) * x


class LossScale(nn.Module):
    """Follows the size of its input and uses it in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.size.lerp_(x.square().mean(0).detach(), 0.1)
        return x / (self.size + EPS).sqrt()


def fake_quantised() -> nn.Module:
    return FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(C, C))


def old_spectral() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(C, C))


LOOK_ALIKES: dict[str, Callable[[], nn.Module]] = {
    "codebook": lambda: after_linear(Codebook()),
    "threshold": lambda: after_linear(Threshold()),
    "centres": lambda: after_linear(Centres()),
    "monitor": lambda: after_linear(Monitor()),
    "input scaling": lambda: nn.Sequential(InputScaling(), nn.Linear(4, 3)),
    "added": lambda: after_linear(Added()),
    "total": lambda: after_linear(Total()),
    "largest": lambda: after_linear(Largest()),
    "teacher": lambda: after_linear(Teacher()),
    "queue": lambda: after_linear(Queue()),
    "balance": lambda: after_linear(Balance()),
    "training only": lambda: after_linear(LossScale()),
    "fake quantised": lambda: after_linear(fake_quantised()),
    "spectral norm": lambda: after_linear(spectral()),
    "old spectral norm": lambda: after_linear(old_spectral()),
    "layer norm": lambda: after_linear(nn.LayerNorm(C), nn.GroupNorm(2, C)),
    "untracked": lambda: after_linear(nn.BatchNorm1d(C, affine=False, track_running_stats=False)),
}


def batch_for(shape: Any) -> Any:
    """A batch for a network of the tables."""
    return shape() if callable(shape) else torch.randn(shape)
