"""The folder that ``varshift fix`` writes: weights, plan, reports, and the script that builds the network."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from varshift._errors import VarshiftError
from varshift.cli._errors import described
from varshift.cli._folder import whole_folder
from varshift.cli._rebuild import PLAN, SCRIPT, WEIGHTS, Origin, rebuild_script
from varshift.cli._weights import Checkpoint, state_writer, write_weights
from varshift.report import write_text

if TYPE_CHECKING:
    from varshift import Cured

BEFORE, AFTER = "before.json", "after.json"
FILES = (WEIGHTS, PLAN, BEFORE, AFTER, SCRIPT)
_NOTHING = "Nothing was written; varshift.fix in Python returns the cured network itself."


def write_cured(
    cured: Cured,
    folder: Path,
    target: str,
    arguments: Mapping[str, Any],
    seed: int,
    checkpoint: Checkpoint | None,
    names: Mapping[str, str],
) -> list[Path]:
    """Writes the folder as a whole; its script is run first, and has to build exactly the cured network.

    Args:
        cured: The treated network.
        folder: The folder.
        target: The target that the network was built from.
        arguments: The keyword arguments that it was built with.
        seed: The seed that it was built with.
        checkpoint: The file that its weights come from, if they come from one.
        names: For each key of that file the key in the network.

    Returns:
        The files, in order.

    Raises:
        VarshiftError: If they cannot be written, or do not build the cured network again.
    """
    state = cured.model.state_dict()
    prefix, added = _prefixes(names)
    keys = _file_keys(list(state), prefix, added)
    stored = checkpoint.state if checkpoint is not None else {}
    tensors = {
        keys[name]: _as_stored(value, stored.get(keys[name]))
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    partial = len(tensors) < len(state)
    origin = Origin(target, arguments, seed, prefix, added, partial)
    with whole_folder(folder, "--out", FILES) as draft:
        metadata = checkpoint.metadata if checkpoint is not None else None
        write_weights(draft / WEIGHTS, state_writer(tensors, ".safetensors", metadata))
        cured.plan.save(draft / PLAN)
        for name, report in ((BEFORE, cured.before), (AFTER, cured.after)):
            if report is not None:
                report.save(draft / name)
        write_text(draft / SCRIPT, rebuild_script(origin, folder))
        _prove(draft / SCRIPT, cured.model)
    return [folder / name for name in FILES if (folder / name).is_file()]


def _prefixes(names: Mapping[str, str]) -> tuple[str, str]:
    """What all keys of the file begin with and the network's do not, and the other way round."""
    key, name = next(iter(names.items()), ("", ""))
    prefix = key.removesuffix(name) if key.endswith(name) else ""
    added = name.removesuffix(key) if name.endswith(key) else ""
    fits = all(added + key == prefix + name for key, name in names.items())
    return (prefix, added) if fits else ("", "")


def _file_keys(names: list[str], prefix: str, added: str) -> dict[str, str]:
    """For each key of the network its key in the file; new ones are named like the others."""
    if added and not all(name.startswith(added) for name in names):
        return {name: name for name in names}
    return {name: prefix + name.removeprefix(added) for name in names}


def _as_stored(value: Tensor, old: Any) -> Tensor:
    """A tensor in the type that it has in the checkpoint, where that loses nothing."""
    value = value.detach().cpu()
    if not isinstance(old, Tensor) or old.dtype == value.dtype:
        return value
    stored = value.to(old.dtype)
    return stored if torch.equal(stored.to(value.dtype), value) else value


def _prove(script: Path, model: nn.Module) -> None:
    """Makes sure that a script builds a network with the state of this one, bit for bit."""
    try:
        rebuilt = runpy.run_path(str(script))["build"]()
    except Exception as error:  # whatever the user's factory does when it is called a second time
        raise VarshiftError(
            f"--out: the cured network cannot be built again from the target ({described(error)}). {_NOTHING}"
        ) from error
    own, other = model.state_dict(), rebuilt.state_dict()
    different = [key for key in dict.fromkeys((*own, *other)) if not _same(own.get(key), other.get(key))]
    if different:
        raise VarshiftError(
            f"--out: built again from the target, the cured network differs at {different[0]!r}. {_NOTHING}"
        )


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(_bytes(first), _bytes(second))
    return type(first) is type(second)


def _bytes(tensor: Tensor) -> Tensor:
    """The bits of a tensor, for they are the same where a value is no number, too."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
