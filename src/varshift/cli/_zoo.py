"""Networks by name: ``timm:NAME`` and ``torchvision:NAME``, without pretrained weights."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from torch import nn

from varshift._errors import VarshiftError
from varshift.cli._errors import user_code_error
from varshift.cli._objects import suggestion
from varshift.integrations import declare_torchvision_operators


def build_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of timm.

    Raises:
        VarshiftError: If timm is not installed, does not know the name, or refuses the arguments.
    """
    timm = _import("timm")
    if not timm.is_model(name):
        raise VarshiftError(f"timm has no model {name!r}{suggestion(name, timm.list_models())}")
    return _call(f"timm:{name}", timm.create_model, (name,), arguments)


def build_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of torchvision, of any of its families, with random weights.

    Raises:
        VarshiftError: If torchvision is not installed, does not know the name, or refuses the arguments.
    """
    models = _import("torchvision.models")
    known = models.list_models()
    if name not in known:
        raise VarshiftError(f"torchvision has no model {name!r}{suggestion(name, known)}")
    return _call(f"torchvision:{name}", models.get_model, (name,), {**no_weights(name), **arguments})


def no_weights(name: str) -> dict[str, None]:
    """The arguments that keep a network of torchvision from loading weights.

    A backbone's weights are loaded unless told otherwise, even where the whole network's are not.
    """
    accepted = inspect.signature(_import("torchvision.models").get_model_builder(name)).parameters
    return {key: None for key in ("weights", "weights_backbone") if key in accepted}


def default_shape(target: str, model: nn.Module) -> tuple[int, ...] | None:
    """The input shape that a zoo network was made for, where the zoo says so; without the batch dimension."""
    zoo, _, name = target.partition(":")
    shape: Any = None
    if zoo == "timm":
        shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    elif zoo == "torchvision":
        shape = _torchvision_shape(name)
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def _torchvision_shape(name: str) -> tuple[int, ...] | None:
    """The crop of the transforms that belong to its weights; networks without a crop take any size."""
    models = _import("torchvision.models")
    try:
        transforms = models.get_model_weights(name)["DEFAULT"].transforms()
    except (KeyError, ValueError, TypeError):
        return None
    crop = getattr(transforms, "crop_size", None)
    if isinstance(crop, (list, tuple)) and len(crop) == 1:
        return (3, crop[0], crop[0])
    return None


def _import(name: str) -> Any:
    import importlib

    package = name.partition(".")[0]
    if find_spec(package) is None:
        raise VarshiftError(f'{package}: targets need {package}: pip install "varshift[zoo]".')
    declare_torchvision_operators()
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise user_code_error(f"importing {package}", error) from error


def _call(target: str, build: Any, positional: tuple[Any, ...], arguments: dict[str, Any]) -> nn.Module:
    try:
        return build(*positional, **arguments)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if value is not None)
        raise user_code_error(f"building {target}{f' with {given}' if given else ''}", error) from error
