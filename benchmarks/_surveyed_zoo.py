"""One network of every timm family, and torchvision's networks for classification and segmentation."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _surveyed_network import CLASSES, RATE, Built, Network, images

_RATES = (  # what the constructors of timm and torchvision call their rates
    "drop_rate",
    "drop_path_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "dropout",
    "attention_dropout",
    "stochastic_depth_prob",
)
_CHOICES = Path(__file__).parent / ".survey_timm.json"


def timm_networks() -> list[Network]:
    if not importlib.util.find_spec("timm"):
        return [Network("timm", "timm", lambda: iter(()), images(3))]
    timm = importlib.import_module("timm")
    return [
        Network(
            f"timm/{family}",
            "timm",
            functools.partial(_timm_attempts, family),
            images(3),
            with_data=index % 5 == 0,
        )
        for index, family in enumerate(timm.list_modules())
    ]


def _timm_attempts(family: str) -> Iterator[tuple[int, Callable[[], Built]]]:
    yield from timm_attempts(smallest_of_timm(family))


def timm_attempts(title: str) -> Iterator[tuple[int, Callable[[], Built]]]:
    """Ways to build a network of timm, small images first."""
    timm = importlib.import_module("timm")
    size = timm.get_pretrained_cfg(title).input_size[-1]
    make = functools.partial(timm.create_model, title, num_classes=CLASSES)
    settings = _accepted(make, *_RATES[:4])
    for small in (64, 128, 168):  # the last one for patches of 14
        if small < size:
            yield small, lambda: Built(make(**settings), title, settings)
            scaled = {**settings, "img_size": small}
            yield small, lambda scaled=scaled: Built(make(**scaled), title, scaled)
    yield size, lambda: Built(make(**settings), title, settings)


def smallest_of_timm(family: str) -> str:
    """The model with the fewest parameters, looked for once and kept in a file."""
    timm = importlib.import_module("timm")
    choices = json.loads(_CHOICES.read_text()) if _CHOICES.exists() else {}
    key = f"{timm.__version__} {family}"
    if key not in choices:
        sizes = {}
        for title in timm.list_models(module=family):
            try:
                with torch.device("meta"):
                    model = timm.create_model(title)
            except Exception:  # some cannot be built there
                continue
            sizes[title] = sum(parameter.numel() for parameter in model.parameters())
        choices[key] = min(sizes, key=lambda title: (sizes[title], title))
        _CHOICES.write_text(json.dumps(choices, indent=1))
    return choices[key]


def torchvision_networks() -> list[Network]:
    if not importlib.util.find_spec("torchvision"):
        return [Network("torchvision", "torchvision", lambda: iter(()), images(3))]
    models = importlib.import_module("torchvision.models")
    titles = [
        *models.list_models(module=models),
        *(title for title in models.list_models(module=models.segmentation)),
    ]
    sizes = {title: _parameters_of_torchvision(title) for title in titles}
    return [
        Network(
            f"torchvision/{title}",
            "torchvision",
            functools.partial(_torchvision_attempts, title),
            images(3),
            with_data=index % 8 == 0,
        )
        for index, title in enumerate(sorted(titles, key=lambda title: sizes[title]))
    ]


def _parameters_of_torchvision(title: str) -> int:
    """As its weights state it, without building it."""
    weights = importlib.import_module("torchvision.models").get_model_weights(title)
    return next((entry.meta["num_params"] for entry in weights), 0)


def _torchvision_attempts(title: str) -> Iterator[tuple[int, Callable[[], Built]]]:
    models = importlib.import_module("torchvision.models")
    weightless = {"weights": None, "num_classes": CLASSES}
    if title in models.list_models(module=models.segmentation):
        weightless["weights_backbone"] = None
    make = functools.partial(models.get_model, title, **weightless)
    settings = _accepted(make, *_RATES)
    for size, scaled in (
        (64, {}),
        (64, {"image_size": 64}),
        (128, {}),
        (224, {}),
        (224, {"input_size": (224, 224)}),
        (299, {}),
    ):
        arguments = {**settings, **scaled}
        yield size, lambda arguments=arguments: Built(make(**arguments), title, arguments)


def _accepted(make: Callable[..., nn.Module], *names: str, **settings: Any) -> dict[str, float]:
    """The rates that a constructor takes, each set; tried on the meta device, where nothing is computed."""
    return {name: RATE for name in names if _builds(make, {**settings, name: RATE})}


def _builds(make: Callable[..., nn.Module], settings: dict[str, Any]) -> bool:
    for device in ("meta", "cpu"):  # some cannot be built on the first
        try:
            with torch.device(device):
                make(**settings)
        except Exception:  # a constructor refuses in its own way
            continue
        return True
    return False
