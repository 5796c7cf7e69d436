"""The faults that are planted, each with the codes that name it, and sound networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _diagnosis_networks import BATCH, FAMILIES, Network, Setting, fit, loader, norms


@dataclass(frozen=True)
class Subject:
    """What is checked: a network, its loader, and further arguments of `check`."""

    model: nn.Module
    loader: Any
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A fault: how to plant it, and which codes name it.

    Attributes:
        name: What it is.
        codes: Codes that name it; none for a sound network.
        build: Plants it.
        families: Families of networks in which it can be.
    """

    name: str
    codes: frozenset[str]
    build: Callable[[Setting], Subject]
    families: tuple[str, ...] = FAMILIES


FAULTS: list[Fault] = []
SOUND: list[Fault] = []
IMAGES = ("plain", "residual")


def fault(name: str, codes: str, families: tuple[str, ...] = FAMILIES) -> Callable[..., Any]:
    """Registers a fault; ``codes`` are numbers in one text, none for a sound network."""

    def register(build: Callable[[Setting], Subject]) -> Callable[[Setting], Subject]:
        known = frozenset(f"VS{number}" for number in codes.split())
        (FAULTS if known else SOUND).append(Fault(name, known, build, families))
        return build

    return register


def trained_on(
    setting: Setting, name: str, batches: Any, make: Callable[[], Any] | None = None, **training: Any
) -> Subject:
    """A network trained on some batches, which it is then checked with."""
    train = partial(fit, batches=batches, **training)
    return Subject(setting.trained(name, make or setting.network, train), batches)


def plant(name: str, codes: str, change: Callable[[Any, Setting], Any], **settings: Any) -> None:
    """Registers a fault that is made in a network that was trained as one should."""

    def build(setting: Setting) -> Subject:
        model = setting.plain()
        with torch.no_grad():
            changed = change(model, setting)
        return Subject(model if changed is None else changed, setting.loader())

    fault(name, codes, **settings)(build)


def wired(name: str, codes: str, parts: Callable[[], dict[str, Any]], **settings: Any) -> None:
    """Registers a fault in how the network is built."""

    def build(setting: Setting) -> Subject:
        return Subject(setting.plain(name.replace(" ", "-"), **parts()), setting.loader())

    fault(name, codes, **settings)(build)


# ---- statistics ------------------------------------------------------------------------------------------
def scale_variances(model: nn.Module, setting: Setting, factor: float = 4.0) -> None:
    """Statistics of a signal of another size."""
    for norm in norms(model):
        norm.running_var.mul_(factor)


def move_means(model: nn.Module, setting: Setting, sigmas: float = 0.7) -> None:
    """Statistics of a signal of another mean."""
    for norm in norms(model):
        norm.running_mean.add_(sigmas * norm.running_var.sqrt())


def follow_others(model: nn.Module, setting: Setting) -> None:
    """Features of other images, extracted in training mode."""
    for part in (setting.x.flip(2) * 2 + 1.5).split(128):
        model.train()(part)


def _of_another(model: nn.Module, setting: Setting) -> None:
    other = Setting(setting.family, setting.data, setting.seed + 10).plain()
    model.load_state_dict(dict(other.named_buffers()), strict=False)


def _forget(model: nn.Module, setting: Setting) -> None:
    for norm in norms(model):
        norm.reset_running_stats()


def _infinite(model: nn.Module, setting: Setting) -> None:
    norms(model)[-1].running_var[:2] = torch.inf


def _average(setting: Setting) -> Subject:
    def train(model: nn.Module) -> None:
        fit(model, setting.loader(), 1)
        average = copy.deepcopy(model)

        def follow(live: nn.Module, step: int) -> None:
            with torch.no_grad():
                for mine, other in zip(average.parameters(), live.parameters(), strict=True):
                    mine.lerp_(other, 0.05)

        fit(model, setting.loader(), each=follow)
        model.load_state_dict(average.state_dict())

    return Subject(setting.trained("average", setting.network, train), setting.loader())


def _early(setting: Setting) -> Subject:
    def train(model: nn.Module) -> None:
        fit(model, setting.loader(), 1, 1e-3)
        early = {name: buffer.clone() for name, buffer in model.named_buffers()}
        fit(model, setting.loader())
        model.load_state_dict(early, strict=False)

    return Subject(setting.trained("early", setting.network, train), setting.loader())


plant("variances four times too large", "202", scale_variances)
plant("variances a quarter", "202", lambda model, setting: scale_variances(model, setting, 0.25))
plant("means 0.7 deviations off", "202", move_means)
plant("features of other images in train()", "202", follow_others)
plant("statistics of another network", "202 205", _of_another)
plant(
    "new statistics under trained weights",
    "201",
    lambda m, s: [n.reset_running_stats() for n in norms(m)] and None,
)
plant("an infinite variance in two channels", "203", _infinite)
fault("average of weights without statistics", "202 205")(_average)
fault("statistics of the first epoch", "202 205")(_early)


@fault("parameters copied without statistics", "202 205")
def _copied(setting: Setting) -> Subject:
    source = setting.plain()
    target = setting.network()
    for mine, other in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.copy_(other.data)
    for norm in norms(target):  # it has run, on weights of its own
        norm.running_mean.normal_(0.0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return Subject(target.train(), setting.loader(), {"reference": source})


@fault("momentum .99", "204")
def _momentum(setting: Setting) -> Subject:
    kind = nn.BatchNorm1d if setting.family == "dense" else nn.BatchNorm2d
    make = partial(setting.network, norm=partial(kind, momentum=0.99))
    return trained_on(setting, "momentum", setting.loader(16), make, epochs=4)


@fault("one sample was never standardised", "211")
def _one_raw(setting: Setting) -> Subject:
    x, y = setting.x[:768].clone(), setting.y[:768]
    x[5] = x[5] * 200 + 300
    return trained_on(setting, "one-raw", loader(x, y), epochs=8)


# ---- noise -----------------------------------------------------------------------------------------------
class Gaussian(nn.Module):
    """Factors with a mean of 1 in training, or always."""

    def __init__(self, sigma: float, *, always: bool = False) -> None:
        super().__init__()
        self.sigma, self.always = sigma, always

    def forward(self, x: Tensor) -> Tensor:
        """The noisy signal."""
        return x * (1 + self.sigma * torch.randn_like(x)) if self.training or self.always else x


class Forgotten(nn.Module):
    """Dropout that is not told the mode."""

    def forward(self, x: Tensor) -> Tensor:
        """The signal with a quarter of it dropped."""
        return F.dropout(x, 0.25)


class Unscaled(nn.Module):
    """Dropout by hand, without the division by the keep probability."""

    def forward(self, x: Tensor) -> Tensor:
        """The signal with four tenths of it dropped in training."""
        return x * (torch.rand_like(x) > 0.4) if self.training else x


class DropsAll(nn.Module):
    """Drop path on the sum: the identity goes, too."""

    def forward(self, x: Tensor) -> Tensor:
        """The sum of one sample in five is dropped in training."""
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1) > 0.2) / 0.8


wired("dropout .3 in front of each norm", "101", lambda: {"before": lambda: nn.Dropout(0.3)})
wired("dropout .5 in front of each norm", "101", lambda: {"before": lambda: nn.Dropout(0.5)})
wired("Gaussian factors in front of each norm", "101", lambda: {"before": lambda: Gaussian(0.8)})
wired(
    "dropout .5 after each activation",
    "102",
    lambda: {"after": lambda: nn.Dropout(0.5)},
    families=("dense", "plain"),
)
wired(
    "dropout .5 on the branch", "102 103", lambda: {"after": lambda: nn.Dropout(0.5)}, families=("residual",)
)
wired("dropout that is on in eval()", "106", lambda: {"head": Forgotten})
wired("Gaussian factors in eval()", "106", lambda: {"head": lambda: Gaussian(0.5, always=True)})
wired("dropout without its scale", "107", lambda: {"head": Unscaled})
wired("drop path on the sum", "107", lambda: {"whole": DropsAll}, families=("residual",))


class Length(nn.Module):
    """A regression without norms: the length of a noisy vector is larger than that of its mean."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(64, 16),
        )

    def forward(self, x: Tensor) -> Tensor:
        """One number per sample."""
        return self.embed(x).norm(dim=1)


@fault("dropout in a regression", "208")
def _regression(setting: Setting) -> Subject:
    batches = loader(setting.x, 1 + setting.y.float() / 3)
    make = partial(Length, setting.x[0].numel())
    return trained_on(setting, "length", batches, make, epochs=12, rate=3e-3, loss=F.mse_loss)


# ---- modes and functions ---------------------------------------------------------------------------------
class InEval(nn.Module):
    """A network whose outputs are changed in evaluation only."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        out = self.net(x)
        return out if self.training else self.change(out)


class Centred(nn.Module):
    """Takes the mean over the batch off, in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        """What is left."""
        return x - x.mean(0, keepdim=True)


class Stuck(nn.Module):
    """A layer whose norm stays in training mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def train(self, mode: bool = True) -> Stuck:
        """The mode of all but the last norm."""
        super().train(mode)
        norms(self)[-1].train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        return self.net(x)


class Alone(nn.Module):
    """Lets a batch of one through without the norms."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The normalised signal, or the signal of a single sample."""
        return x if len(x) == 1 else self.norm(x)


class Counting(nn.Module):
    """Follows the size of its input in evaluation, and divides by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The signal in units of its size."""
        if not self.training:
            self.size.lerp_(x.detach().abs().mean(), 0.3)
        return x / (0.5 + self.size)


class Merged(nn.Module):
    """A classifier that evaluation replaces by what the first validation merged."""

    def __init__(self, classes: nn.Linear) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("merged", classes.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return F.linear(x, self.classes.weight if self.training else self.merged, self.classes.bias)


def _merged(setting: Setting) -> Subject:
    def make() -> nn.Module:
        model = setting.network()
        model.classes = Merged(model.classes)
        return model

    def train(model: nn.Module) -> None:
        fit(model, setting.loader(), 1)
        model.classes.merged.copy_(model.classes.classes.weight.detach())
        fit(model, setting.loader())

    return Subject(setting.trained("merged", make, train), setting.loader())


plant("softmax in eval() only", "405", lambda model, setting: InEval(model, lambda out: out.softmax(1)))
plant("logits of a tenth in eval() only", "405", lambda model, setting: InEval(model, lambda out: 0.1 * out))
fault("weights merged once for eval()", "405")(_merged)
wired("the batch's mean is taken off", "401", lambda: {"head": Centred})
plant("a norm that stays in training mode", "401", lambda model, setting: Stuck(model))
wired("state is written in eval()", "406", lambda: {"head": Counting})


@fault("a batch of one passes its norms by", "301 401")
def _alone(setting: Setting) -> Subject:
    kind = nn.BatchNorm1d if setting.family == "dense" else nn.BatchNorm2d
    model = setting.plain("alone", norm=lambda width: Alone(kind(width)))
    return Subject(model, setting.loader())


# ---- batches ---------------------------------------------------------------------------------------------
def exposed(setting: Setting) -> Tensor:
    """Images of different contrast and brightness."""
    draw = torch.Generator().manual_seed(setting.seed)
    shape = (len(setting.x), 1, 1, 1)
    return setting.x * (0.3 + 2 * torch.rand(shape, generator=draw)) + torch.randn(shape, generator=draw)


@fault("batches of two", "302", IMAGES)
def _pairs(setting: Setting) -> Subject:
    return trained_on(setting, "pairs", loader(exposed(setting), setting.y, 2), epochs=2, rate=2e-3)


@fault("instance norms with running statistics", "209", IMAGES)
def _instances(setting: Setting) -> Subject:
    norm = partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)
    batches = loader(exposed(setting), setting.y)
    return trained_on(setting, "instances", batches, partial(setting.network, norm=norm))


@fault("sorted by class", "304")
def _sorted(setting: Setting) -> Subject:
    order = setting.y.argsort(stable=True)
    batches = loader(setting.x[order], setting.y[order], 48, shuffle=False)
    return trained_on(setting, "sorted", batches, rate=1e-3)


@fault("batches of one kind", "304")
def _kinds(setting: Setting) -> Subject:
    draw = torch.Generator().manual_seed(setting.seed)
    x = setting.x[:768]
    other = 0.6 * x + 0.4 * x.roll(1, 3) + 0.1 * torch.randn(x.shape, generator=draw)
    both, kind = torch.cat([x, other]), torch.cat([torch.zeros(768), torch.ones(768)]).long()
    turns = [torch.arange(i, i + 32) + start for i in range(0, 768, 32) for start in (0, 768)]
    order = torch.cat(turns)
    batches = loader(both[order], kind[order], 32, shuffle=False)
    return trained_on(setting, "kinds", batches, epochs=5)


@fault("the same batches in every epoch", "303")
def _fixed(setting: Setting) -> Subject:
    batches = loader(setting.x[:384], setting.y[:384], 16, shuffle=False)
    return trained_on(setting, "fixed", batches, epochs=25)


@fault("a last batch of one", "301", IMAGES)
def _last(setting: Setting) -> Subject:
    batches = loader(exposed(setting)[:769], setting.y[:769], drop_last=False)
    return trained_on(setting, "last", batches, epochs=6)


# ---- training --------------------------------------------------------------------------------------------
@fault("trained in eval() after ten steps", "210")
def _in_eval(setting: Setting) -> Subject:
    def each(model: nn.Module, step: int) -> None:
        model.train(step < 10)

    return trained_on(setting, "in-eval", setting.loader(), epochs=6, each=each)


@fault("frozen by its gradients only", "402")
def _frozen(setting: Setting) -> Subject:
    def make() -> nn.Module:
        model = setting.plain()
        model.body.requires_grad_(False)
        return model

    return trained_on(setting, "frozen", loader(0.6 * setting.x + 0.5, setting.y), make, epochs=3)


class TwoViews(nn.Module):
    """One body for an image and for a brighter one of more contrast."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net, self.classes = net, nn.Linear(2 * net.classes.in_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.classes(torch.cat([self.net.features(x), self.net.features(4 * x.flip(3) + 3)], 1))


@fault("one body for two views", "403")
def _views(setting: Setting) -> Subject:
    return trained_on(setting, "views", setting.loader(), lambda: TwoViews(setting.network()))


# ---- other data ------------------------------------------------------------------------------------------
@fault("deployment without standardising", "307")
def _deployed(setting: Setting) -> Subject:
    return Subject(setting.plain(), setting.loader(), {"deploy": loader(0.3 * setting.x + 0.4, setting.y)})


@fault("checked on images that are not standardised", "306")
def _raw(setting: Setting) -> Subject:
    return Subject(setting.plain(), loader(0.3 * setting.x + 0.4, setting.y))


# ---- sound networks --------------------------------------------------------------------------------------
def sound(
    name: str, parts: Callable[[], dict[str, Any]] = dict, *, size: int = BATCH, **training: Any
) -> None:
    """Registers a network that is built and trained as one should."""

    def build(setting: Setting) -> Subject:
        make = partial(setting.network, **parts())
        return trained_on(setting, name.replace(" ", "-"), setting.loader(size), make, **training)

    fault(name, "")(build)


class Jitter(nn.Module):
    """Augmentation inside the network: other brightness for each sample in training."""

    def forward(self, x: Tensor) -> Tensor:
        """The features, scaled a little."""
        return x * (0.95 + 0.1 * torch.rand(len(x), *[1] * (x.dim() - 1))) if self.training else x


sound("plain")
sound("batches of 32", size=32)
sound("batches of 128", size=128, epochs=10)
sound("more epochs", epochs=12)
sound("dropout .5 in the head", lambda: {"head": lambda: nn.Dropout(0.5)})
sound("dropout .2 in the head", lambda: {"head": lambda: nn.Dropout(0.2)})
sound("a mild jitter of the features", lambda: {"head": Jitter})
sound("no norms", lambda: {"norm": lambda width: nn.Identity()}, rate=2e-3)
sound(
    "group norms and dropout",
    lambda: {"norm": lambda width: nn.GroupNorm(4, width), "after": lambda: nn.Dropout(0.2)},
)
sound("small steps", rate=3e-3)
