"""Two faults in one network, and what each of them costs, measured by taking it away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _diagnosis_faults import InEval, Subject, follow_others, move_means, scale_variances
from _diagnosis_networks import Setting, loader, recalibrated


@dataclass(frozen=True)
class Ingredient:
    """A fault that can be put into a network and taken out of it.

    Attributes:
        name: What it is.
        step: The step of the gap that it is.
        codes: Codes that name it.
        parts: Parts of the network that it needs, in training already.
        put: Puts it into a trained network, and returns the network.
        images: What deployment makes of the images.
    """

    name: str
    step: str
    codes: frozenset[str]
    parts: Callable[[], dict[str, Any]] = dict
    put: Callable[[nn.Module, Setting], Any] | None = None
    images: Callable[[Tensor], Tensor] | None = None


def _codes(text: str) -> frozenset[str]:
    return frozenset(f"VS{number}" for number in text.split())


NOISES = (
    Ingredient(
        "dropout .3 before", "variance-shift", _codes("101"), lambda: {"before": lambda: nn.Dropout(0.3)}
    ),
    Ingredient(
        "dropout .5 before", "variance-shift", _codes("101"), lambda: {"before": lambda: nn.Dropout(0.5)}
    ),
    Ingredient(
        "dropout .5 after", "variance-shift", _codes("102 103"), lambda: {"after": lambda: nn.Dropout(0.5)}
    ),
)
STATISTICS = (
    Ingredient("variances doubled", "statistics", _codes("202"), put=lambda m, s: scale_variances(m, s, 2.0)),
    Ingredient("means off", "statistics", _codes("202"), put=lambda m, s: move_means(m, s, 0.4)),
    Ingredient("features of others", "statistics", _codes("202"), put=follow_others),
)
FUNCTIONS = (
    Ingredient("softmax", "function", _codes("405"), put=lambda m, s: InEval(m, lambda out: out.softmax(1))),
    Ingredient(
        "a third of the logits", "function", _codes("405"), put=lambda m, s: InEval(m, lambda out: out / 3)
    ),
    Ingredient(
        "clipped logits", "function", _codes("405"), put=lambda m, s: InEval(m, lambda out: out.clamp(-1, 1))
    ),
)
DEPLOYED = (Ingredient("not standardised", "transform", _codes("307"), images=lambda x: 0.4 * x + 0.4),)

MIXTURES = [
    (one, two)
    for ones, twos in ((NOISES, STATISTICS), (NOISES, FUNCTIONS), (STATISTICS, FUNCTIONS), (DEPLOYED, NOISES))
    for one in ones
    for two in twos
]


@dataclass(frozen=True)
class Truth:
    """What an ingredient costs of the loss in evaluation.

    Attributes:
        alone: What it adds to the network without the other.
        on_top: What it adds to the network with the other.
    """

    alone: float
    on_top: float

    @property
    def mean(self) -> float:
        """Its share of both together, whichever comes first."""
        return (self.alone + self.on_top) / 2


def mixture(one: Ingredient, two: Ingredient, setting: Setting) -> tuple[Subject, dict[str, Truth]]:
    """A network with both faults, and what each of them costs by step of the gap."""
    parts = {**one.parts(), **two.parts()}
    noise = next((item for item in (one, two) if item.parts()), None)
    name = f"mixed-{noise.name.replace(' ', '-')}" if noise else "plain"
    trained = setting.plain(name, **parts)
    quiet = recalibrated(trained, setting.loader())

    def made(*items: Ingredient) -> tuple[nn.Module, Tensor]:
        # What the noise did to the statistics is there unless they are re-estimated without it.
        model, x = copy.deepcopy(trained if noise in items or noise is None else quiet), setting.x
        for item in sorted(items, key=lambda item: item.step == "function"):
            if item.put is not None:
                with torch.no_grad():
                    model = item.put(model, setting) or model
            if item.images is not None:
                x = item.images(x)
        return model, x

    losses = {items: _loss(*made(*items), setting.y) for items in ((), (one,), (two,), (one, two))}
    both, none = losses[one, two], losses[()]
    truths = {
        one.step: Truth(losses[one,] - none, both - losses[two,]),
        two.step: Truth(losses[two,] - none, both - losses[one,]),
    }
    model, x = made(one, two)
    options = {} if x is setting.x else {"deploy": loader(x, setting.y)}
    return Subject(model.train(), setting.loader(), options), truths


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model = model.eval()
    outputs = torch.cat([model(part) for part in x.split(256)])
    return float(F.cross_entropy(outputs, y))
