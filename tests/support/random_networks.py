"""Random small networks with random noise sites, written out as source text: surgery needs source to edit."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH, CLASSES, SIZE = 6, 3, 6

Form = Literal["sequential", "residual", "concatenating"]
Kind = Literal["dropout", "channel", "drop_path", "gaussian", "uniform"]
Style = Literal["module", "shared", "literal", "attribute", "helper"]
FORMS: tuple[Form, ...] = ("sequential", "residual", "concatenating")
KINDS: tuple[Kind, ...] = ("dropout", "channel", "drop_path", "gaussian", "uniform")
STYLES: tuple[Style, ...] = ("module", "shared", "literal", "attribute", "helper")


@dataclass(frozen=True)
class Noise:
    """A noise site to be written.

    Attributes:
        kind: Kind of the noise.
        style: A module of its own, one that the whole network shares, a call with its rate in place or in an
            attribute, or such a call inside a function.
        rate: Drop probability, or standard deviation or half-width of a factor.
        place: Before the convolution of its block, after it, or after the norm.
    """

    kind: Kind
    style: Style
    rate: float
    place: Literal["before", "middle", "after"] = "before"


@dataclass(frozen=True)
class Plan:
    """A network to be written.

    Attributes:
        form: How its blocks are joined.
        blocks: The noise of each block.
        head: The noise in front of the last layer.
        seed: Seed of its weights.
    """

    form: Form
    blocks: tuple[tuple[Noise, ...], ...]
    head: Noise | None = None
    seed: int = 0


noises = st.builds(
    Noise,
    kind=st.sampled_from(KINDS),
    style=st.sampled_from(STYLES),
    rate=st.sampled_from((0.0, 0.1, 0.3, 0.5)),
    place=st.sampled_from(("before", "middle", "after")),
)


def _blocks(form: Form) -> st.SearchStrategy[Plan]:
    if form != "residual":  # without a path around it, drop path is a fault of its own
        inside = noises.filter(lambda noise: noise.kind != "drop_path")
    else:
        inside = noises.filter(lambda noise: noise.kind != "drop_path" or noise.place != "before")
    head = noises.filter(lambda noise: noise.kind != "drop_path")
    blocks = st.lists(st.lists(inside, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)
    return st.builds(Plan, st.just(form), blocks, st.none() | head, st.integers(0, 3))


plans = st.sampled_from(FORMS).flatmap(_blocks)
# Networks that no noise can harm: none in front of a norm.
sound_plans = st.builds(
    Plan,
    form=st.sampled_from(FORMS),
    blocks=st.lists(st.just(()), min_size=1, max_size=3).map(tuple),
    head=st.none()
    | st.builds(Noise, st.just("dropout"), st.sampled_from(STYLES), st.sampled_from((0.1, 0.3))),
    seed=st.integers(0, 3),
)

_HEADER = '''\
import torch
import torch.nn.functional as F
from torch import nn


def drop_path(x, rate, training):
    if rate == 0.0 or not training:
        return x
    keep = 1 - rate
    return x * (torch.rand(x.shape[0], *[1] * (x.dim() - 1)) < keep) / keep


def gaussian(x, rate, training):
    return x * (1 + rate * torch.randn_like(x)) if training else x


def uniform(x, rate, training):
    return x * (1 + rate * (2 * torch.rand_like(x) - 1)) if training else x


def helped(x, rate, training):
    return F.dropout(x, rate, training)


def helped_channels(x, rate, training):
    return F.dropout2d(x, rate, training)


class Function(nn.Module):
    """Noise as a module."""

    def __init__(self, function, rate):
        super().__init__()
        self.function, self.rate = function, rate

    def forward(self, x):
        return self.function(x, self.rate, self.training)


'''
_FUNCTIONS = {"dropout": "F.dropout", "channel": "F.dropout2d"}
_HELPERS = {"dropout": "helped", "channel": "helped_channels"}
_MODULES = {"dropout": "nn.Dropout({rate})", "channel": "nn.Dropout2d({rate})"}


def source_of(plan: Plan) -> str:
    """The text of a module that holds the class `Network`."""
    writer = _Writer(plan)
    return _HEADER + writer.text()


class _Writer:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._attributes: list[str] = []
        self._shared: dict[tuple[str, float], str] = {}

    def text(self) -> str:
        """The classes, blocks first."""
        plan = self._plan
        classes = [self._block(number, noises) for number, noises in enumerate(plan.blocks)]
        self._attributes = []
        head = self._noise(plan.head, "head") if plan.head else []
        width, steps = WIDTH, []
        init = [f"self.stem = nn.Conv2d(3, {WIDTH}, 3, padding=1)"]
        for number in range(len(plan.blocks)):
            init.append(f"self.block{number} = Block{number}({width})")
            steps.append(f"x = self.block{number}(x)")
            width += WIDTH if plan.form == "concatenating" else 0
        init += [*self._attributes, f"self.last = nn.Linear({width}, {CLASSES})"]
        body = ["x = self.stem(x)", *steps, "x = F.relu(x).mean((2, 3))", *head, "return self.last(x)"]
        return "\n\n\n".join([*classes, _class("Network", "", init, body)]) + "\n"

    def _block(self, number: int, noises: tuple[Noise, ...]) -> str:
        self._attributes, self._shared = [], {}
        lines: dict[str, list[str]] = {"before": [], "middle": [], "after": []}
        for count, noise in enumerate(noises):
            lines[noise.place] += self._noise(noise, f"noise{count}")
        init = [
            f"self.conv = nn.Conv2d(width, {WIDTH}, 3, padding=1)",
            f"self.norm = nn.BatchNorm2d({WIDTH})",
            *self._attributes,
        ]
        body = [
            "skip = x",
            *lines["before"],
            "x = self.conv(x)",
            *lines["middle"],
            "x = F.relu(self.norm(x))",
            *lines["after"],
        ]
        ends = {"sequential": "x", "residual": "skip + x", "concatenating": "torch.cat([skip, x], 1)"}
        return _class(f"Block{number}", "width", init, [*body, f"return {ends[self._plan.form]}"])

    def _noise(self, noise: Noise, name: str) -> list[str]:
        """The lines that make it; its attributes are noted."""
        kind = "dropout" if name == "head" and noise.kind == "channel" else noise.kind
        function = _FUNCTIONS.get(kind, kind)
        if noise.style in ("module", "shared"):
            made = _MODULES.get(kind, "Function({function}, {rate})")
            made = made.format(function=kind, rate=noise.rate)
            if noise.style == "shared":
                # Of one kind and rate there is one module, which runs twice where two sites want it.
                name = self._shared.setdefault((kind, noise.rate), name)
            line = f"self.{name} = {made}"
            if line not in self._attributes:
                self._attributes.append(line)
            return [f"x = self.{name}(x)"]
        rate = str(noise.rate)
        if noise.style == "attribute":
            self._attributes.append(f"self.{name}_rate = {noise.rate}")
            rate = f"self.{name}_rate"
        if noise.style == "helper":
            function = _HELPERS.get(kind, function)
        return [f"x = {function}(x, {rate}, self.training)"]


def _class(name: str, argument: str, init: list[str], body: list[str]) -> str:
    arguments = f"self, {argument}" if argument else "self"
    lines = [f"class {name}(nn.Module):", f"    def __init__({arguments}):", "        super().__init__()"]
    lines += [f"        {line}" for line in init]
    lines += ["", "    def forward(self, x):", *[f"        {line}" for line in body]]
    return "\n".join(lines)


def network_of(plan: Plan, folder: Path) -> nn.Module:
    """A network as planned, of a class whose source lies in a file of a folder."""
    text = source_of(plan)
    name = f"random_network_{sha256(text.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        file = folder / f"{name}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        return sys.modules[name].Network()


def batches(count: int = 8, size: int = 24) -> list[Tensor]:
    """Inputs with some structure, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    scale = 1 + torch.rand(3, 1, 1, generator=generator)
    return [torch.randn(size, 3, SIZE, SIZE, generator=generator) * scale + 0.5 for _ in range(count)]


def learnt(network: nn.Module, passes: int = 6) -> nn.Module:
    """The network with the running statistics that training mode produces."""
    network.train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for _ in range(passes):
            for batch in batches():
                network(batch)
    return network.eval()
