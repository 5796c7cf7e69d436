"""The file ``apply.py``: a few lines that build the cured network from the original target."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from varshift.cli._objects import resolve_module, resolve_object
from varshift.cli._zoo import no_weights
from varshift.integrations import declare_torchvision_operators

WEIGHTS, PLAN, SCRIPT = "weights.safetensors", "plan.json", "apply.py"


@dataclass(frozen=True)
class Origin:
    """Where a network comes from.

    Attributes:
        target: The target as it was given.
        arguments: Its keyword arguments.
        seed: The seed that it was built with.
        prefix: What the keys of the weights begin with and those of the network do not.
        added: What the keys of the network begin with and those of the weights do not.
        partial: Whether the network has state that a file of tensors cannot hold.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    prefix: str = ""
    added: str = ""
    partial: bool = False


def rebuild_script(origin: Origin, folder: Path) -> str:
    """The text of ``apply.py``.

    Args:
        origin: Where the network comes from.
        folder: The folder that the file is for; paths of the user's own modules are relative to it.
    """
    path, statements, value = _factory(origin, folder)
    rename = ""
    if origin.prefix or origin.added:
        key = f"key.removeprefix({origin.prefix!r})" if origin.prefix else f"{origin.added!r} + key"
        rename = f"    state = {{{key}: value for key, value in state.items()}}"
    lines = [
        f'"""The network {_told(origin)}, cured by `varshift fix`: `from apply import build`."""',
        "",
        *(["import sys"] if any("sys." in line for line in (*path, *statements)) else []),
        "from pathlib import Path",
        "",
        "import torch",
        "from safetensors.torch import load_file",
        "",
        "import varshift",
        "",
        "HERE = Path(__file__).resolve().parent",
        *path,
        "",
        "",
        "def original():",
        '    """The network as it was before the cure, without its weights."""',
        *(f"    {statement}" if statement else "" for statement in statements),
        "",
        f"    return {value}",
        "",
        "",
        "def build():",
        '    """The cured network with its weights."""',
        "    with torch.random.fork_rng(devices=[]):",
        f"        torch.manual_seed({origin.seed})  # as when it was cured: it may draw more than weights",
        f'        model = varshift.apply_plan(original(), HERE / "{PLAN}").model',
        f'    state = load_file(HERE / "{WEIGHTS}")',
        *([rename] if rename else []),
        f"    model.load_state_dict(state{', strict=False' if origin.partial else ''})",
        "    return model",
        "",
    ]
    return "\n".join(lines)


def _told(origin: Origin) -> str:
    return origin.target.replace("\\", "/").replace('"', "'")


def _factory(origin: Origin, folder: Path) -> tuple[list[str], list[str], str]:
    """Lines that extend the module path, statements, and the expression whose value is the network."""
    zoo, _, name = origin.target.partition(":")
    if zoo == "timm":
        return [], _importing("import timm"), f"timm.create_model({_call(origin.arguments, repr(name))})"
    if zoo == "torchvision":
        arguments = {**no_weights(name), **origin.arguments}
        value = f"torchvision.models.get_model({_call(arguments, repr(name))})"
        return [], _importing("import torchvision"), value
    module, _, name = resolve_module(origin.target, "target")
    first = name.partition(".")[0]
    is_network = isinstance(resolve_object(origin.target, "target"), nn.Module)
    call = "" if is_network else f"({_call(origin.arguments)})"
    root, dotted = _root(module)
    if root is None:
        return [], _importing(f"from {dotted} import {first}"), f"{name}{call}"
    if not dotted:  # a file whose name is no name of a module, or another module's
        file = _reached(Path(str(module.__file__)).resolve(), folder)
        statements = [
            "from importlib.util import module_from_spec, spec_from_file_location",
            "",
            f'spec = spec_from_file_location("{module.__name__}", {file})',
            "module = sys.modules[spec.name] = module_from_spec(spec)",
            "spec.loader.exec_module(module)",
        ]
        return [f"sys.path.insert(0, str({_reached(root, folder)}))"], statements, f"module.{name}{call}"
    path = [f"sys.path.insert(0, str({_reached(root, folder)}))"]
    return path, _importing(f"from {dotted} import {first}"), f"{name}{call}"


def _call(arguments: Mapping[str, Any], *positional: str) -> str:
    return ", ".join([*positional, *(f"{key}={value!r}" for key, value in arguments.items())])


def _importing(statement: str) -> list[str]:
    """An import, after what an installation of torchvision that does not fit torch needs."""
    if "torchvision" not in sys.modules or not declare_torchvision_operators():
        return [statement]
    return [
        "from varshift.integrations import declare_torchvision_operators",
        "",
        "declare_torchvision_operators()  # torchvision's compiled operators do not fit this torch",
        statement,
    ]


def _root(module: ModuleType) -> tuple[Path | None, str]:
    """The folder that a module is imported from and its dotted name.

    The folder is None for what is installed; the name is empty where it cannot be imported by one.
    """
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return None, module.__name__
    path = Path(file).resolve()
    if module.__name__.startswith("_varshift_"):
        return path.parent, ""
    steps = module.__name__.count(".") + (path.stem == "__init__")
    root = path.parents[steps]
    paths = sysconfig.get_paths()
    installed = any(root == Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib"))
    return (None if installed else root), module.__name__


def _reached(path: Path, folder: Path) -> str:
    """An expression for a path: from the folder of the script where both lie in one project, else in full."""
    folder, here = folder.resolve(), Path.cwd().resolve()
    near = path in folder.parents or path == folder
    if near or all(here == item or here in item.parents for item in (path, folder)):
        relative = Path(os.path.relpath(path, folder)).as_posix()
        return {".": "HERE", "..": "HERE.parent"}.get(relative, f'(HERE / "{relative}").resolve()')
    return f'Path("{path.as_posix()}")'
