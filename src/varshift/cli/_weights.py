"""Loading a state dict, from a pickle only if told to, and writing it back in the layout it came in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import VarshiftError
from varshift.cli._errors import described, one_line, print_warning
from varshift.cli._harmless import harmless_classes
from varshift.cli._sources import weights_file
from varshift.report import check_writable, write_atomically

# Where training scripts put the state dict, in the order in which it is looked for; averages come last.
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "params")
_AVERAGES = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "shadow_params",
)
_WRAPPERS = ("module", "_orig_mod", "model")
_BOOKKEEPING = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel
WRITABLE = (".safetensors", ".pt", ".pth")
_NAMED = 4
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """A file with a state dict.

    Attributes:
        path: The file.
        content: All of it; for safetensors the state dict itself.
        state: The state dict in it, with the file's own keys.
        location: Keys that lead to it from `content`.
        others: Other places in the file where a state dict lies.
        metadata: Metadata of a safetensors file.
    """

    path: Path
    content: Any
    state: Mapping[str, Any]
    location: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path, key: str | None = None, *, trust: bool = False) -> Checkpoint:
    """Reads a state dict from a ``.safetensors`` file or a torch file of tensors and plain values.

    Args:
        path: The file, or a folder with one as Hugging Face writes it.
        key: Where in the file it lies, with dots for steps; found by itself when None.
        trust: Whether a pickle that may run any code is read, with a warning. A whole network in it counts as
            its state dict.

    Raises:
        VarshiftError: If the file cannot be read, is a pickle that would run code, or holds no state dict.
    """
    path = weights_file(path)
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise VarshiftError(
                f"--weights: {str(path)!r} is a pointer of Git LFS, not the file itself: run `git lfs pull`."
            )
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content = _read_torch(path, trust=trust)
    places = dict(_state_dicts(content))
    if key is not None:
        wanted = key.replace("/", ".")
        found = next((place for place in places if ".".join(place) == wanted), None)
        if found is None:
            known = [".".join(place) for place in places if place]
            listed = f" It has them at {', '.join(known)}." if known else ""
            raise VarshiftError(f"--weights-key: {str(path)!r} has no state dict at {key!r}.{listed}")
    elif places:
        found = min(places, key=_preference)
    else:
        raise VarshiftError(
            f"--weights: {str(path)!r} holds {_kind(content)} and no state dict: save model.state_dict()."
        )
    others = tuple(".".join(place) for place in places if place != found and place)
    return Checkpoint(path, content, places[found], found, others, metadata)


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, prefix: str | None = None, *, strict: bool = False
) -> dict[str, str]:
    """Loads a checkpoint into a model.

    Prefixes that wrappers put in front of keys (``module.``, ``_orig_mod.``, ``model.``) are taken off, or
    put on, when that makes them fit. Keys that the model does not have are ignored if it gets all it needs.

    Args:
        model: The network.
        checkpoint: The file as it was read.
        prefix: Take only the keys that begin with it, without it.
        strict: Whether keys that the model does not have are an error.

    Returns:
        For each key of the file that the model has the key there.

    Raises:
        VarshiftError: If keys are missing, of another shape, or unexpected and `strict`; the message lists
            them.
    """
    own = model.state_dict()
    names = _renamed(checkpoint, list(own), prefix)
    renamed = {names[key]: value for key, value in checkpoint.state.items() if key in names}
    where = f"--weights: {str(checkpoint.path)!r} does not fit {type(model).__name__}"
    mismatched = _mismatched(renamed, own)
    try:
        result = model.load_state_dict(renamed, strict=False)
        missing, unexpected = list(result.missing_keys), list(result.unexpected_keys)
    except RuntimeError as error:
        missing = [key for key in own if key not in renamed]
        unexpected = [key for key in renamed if key not in own]
        if not mismatched:
            raise VarshiftError(f"{where}: {one_line(str(error))}.") from error
    else:
        mismatched = []  # what torch took, fits
    # Files older than torch 0.4.1 have no counters.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    parts = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("of another shape", mismatched),
    ]
    used = {key: name for key, name in names.items() if name in own}
    if missing or mismatched or (unexpected and (strict or not used)):
        listed = "; ".join(part for part in parts if part)
        raise VarshiftError(f"{where}: {listed}.{_fitting_prefix(checkpoint.state, own) if missing else ''}")
    return used


def ignored_keys(checkpoint: Checkpoint, names: Mapping[str, str], prefix: str | None = None) -> str:
    """The first keys of a file that went nowhere, and how many more; empty for none.

    Args:
        checkpoint: The file as it was read.
        names: What `load_weights` returned.
        prefix: The prefix that keys were taken by; without it they were not meant.
    """
    left = [key for key in checkpoint.state if key not in names and key not in _BOOKKEEPING]
    if prefix is not None:
        left = [key for key in left if key.startswith(prefix.rstrip(".") + ".")]
    return _first(left)


def updated_content(
    checkpoint: Checkpoint, names: Mapping[str, str], values: Mapping[str, Tensor], suffix: str
) -> Callable[[Path], object]:
    """A function that writes the checkpoint with some of its tensors replaced.

    Everything else stays as it was in the file: keys, their order, other entries, types. A torch file written
    as safetensors keeps its state dict alone.

    Args:
        checkpoint: The file as it was read.
        names: For each of its keys the key in the model.
        values: New values by their key in the model.
        suffix: Ending of the file to write: ``".safetensors"``, ``".pt"`` or ``".pth"``.
    """
    state = {
        key: values[names[key]].detach().to("cpu", old.dtype) if names.get(key) in values else old
        for key, old in checkpoint.state.items()
    }
    if suffix == ".safetensors":
        return state_writer(state, suffix, checkpoint.metadata)
    content = _replaced(checkpoint.content, checkpoint.location, state)
    return lambda path: torch.save(content, path)


def state_writer(
    state: Mapping[str, Any], suffix: str, metadata: Mapping[str, str] | None = None
) -> Callable[[Path], object]:
    """A function that writes a state dict to a path, in the format that the ending names."""
    if suffix != ".safetensors":
        return lambda path: torch.save(dict(state), path)
    from safetensors.torch import save_file

    # Safetensors hold no tensors that share memory, as tied weights do, and nothing but tensors.
    tensors = {
        key: value.detach().cpu().contiguous().clone()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return lambda path: save_file(tensors, path, metadata=dict(metadata) if metadata else None)


def check_output(path: Path, *, force: bool) -> None:
    """Makes sure, before long work, that weights can be written to a path.

    Raises:
        VarshiftError: If the ending names no format, the file exists and `force` is false, or it cannot
            be written.
    """
    if path.suffix not in WRITABLE:
        raise VarshiftError(f"--out: {str(path)!r} must end in {', '.join(WRITABLE[:-1])} or {WRITABLE[-1]}.")
    if path.exists() and not force:
        raise VarshiftError(f"--out: {str(path)!r} exists already: --force writes over it.")
    check_writable(path)


def write_weights(path: Path, write: Callable[[Path], object]) -> None:
    """Writes weights so that the file is either complete or as it was before."""
    write_atomically(path, write)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VarshiftError(f"--weights: {str(path)!r} cannot be read: {one_line(str(error))}.") from error


def _read_torch(path: Path, *, trust: bool) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless_classes()):
            warnings.simplefilter("ignore")  # about the protocol of a file that is refused in the next moment
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors, broken archives and scripted modules differ in kind
        text = str(error)
        if "weights_only" in text or "Weights only" in text:
            if trust:
                print_warning(f"--trust: {path}: {_refused(text)}; reading it can run any code.")
                return _read_pickle(path)
            raise VarshiftError(
                f"--weights: {str(path)!r} was refused: {_refused(text)}, and reading such a file can run "
                "any code. If you trust whoever wrote it, --trust reads it all the same; else have the state "
                "dict saved alone: torch.save(model.state_dict(), ...), or as safetensors."
            ) from error
        raise VarshiftError(
            f"--weights: {str(path)!r} cannot be read as weights: {described(error)}. Expected a file of "
            "torch.save or safetensors."
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the classes in the file do, or miss
        raise VarshiftError(f"--weights: {str(path)!r} cannot be read: {described(error)}.") from error


def _refused(text: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|type|got) `?([\w.]+\.[\w.]+)`?", text)
    if named is not None:
        return f"it holds pickled Python objects ({named.group(1)})"
    return "it is a scripted archive" if "TorchScript" in text else "it holds pickled Python objects"


def _state_dicts(
    content: Any, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """State dicts in a file, with the keys that lead to each."""
    if isinstance(content, nn.Module):
        yield place, content.state_dict()
        return
    if not isinstance(content, dict):  # of a configuration, values are worked out on access
        return
    if _is_state_dict(content):
        yield place, content
    elif len(place) < 3:
        for key, value in content.items():
            if isinstance(key, str) and not key.startswith(("optim", "scheduler", "lr_sched")):
                yield from _state_dicts(value, (*place, key))


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    tensors = [key for key, value in content.items() if isinstance(value, Tensor)]
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    return (
        bool(tensors)
        and all(isinstance(key, str) for key in content)
        and all(key.endswith("_extra_state") for key in others)
    )


def _preference(place: tuple[str, ...]) -> tuple[int, int]:
    known = (*_CONTAINERS, "", *_AVERAGES)
    name = place[0] if place else ""
    rank = known.index(name) if name in known else len(_CONTAINERS) + ("ema" in name.lower())
    return (rank if place else -1), len(place)


def _renamed(checkpoint: Checkpoint, own: list[str], prefix: str | None) -> dict[str, str]:
    """Names in the model for keys of the file: those with the prefix, or all of them without one."""
    if prefix is None:
        return _best_fit(list(checkpoint.state), own)
    start = prefix.rstrip(".") + "."
    keys = {key: key.removeprefix(start) for key in checkpoint.state if key.startswith(start)}
    if not keys:
        known = dict.fromkeys(key.partition(".")[0] for key in checkpoint.state if "." in key)
        listed = f" They begin with {', '.join(list(known)[:8])}." if known else ""
        raise VarshiftError(f"--prefix: no key of {str(checkpoint.path)!r} begins with {start!r}.{listed}")
    fit = _best_fit(list(keys.values()), own)
    return {key: fit[short] for key, short in keys.items() if short in fit}


def _fitting_prefix(state: Iterable[str], own: Iterable[str]) -> str:
    """A sentence about the prefixes under which all that the network needs is in the file; empty for none."""
    keys = set(state)
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    starts = [key.removesuffix(needed[0]) for key in keys if key.endswith(f".{needed[0]}")] if needed else []
    fitting = sorted(start for start in starts if all(f"{start}{key}" in keys for key in needed))
    return f" It fits with {' or '.join(f'--prefix {start}' for start in fitting)}" if fitting else ""


def _best_fit(keys: list[str], own: list[str]) -> dict[str, str]:
    """Names in the model for the keys of a file, by whichever way of renaming them fits most."""
    targets = set(own)
    keys = [key for key in keys if key not in _BOOKKEEPING or key in targets]
    candidates = [{key: key for key in keys}]
    candidates += [dict(zip(keys, _stripped(keys, steps), strict=True)) for steps in (1, 2, 3)]
    plain = {_bare(name): name for name in own}
    if len(plain) == len(own):
        candidates.append({key: plain.get(_bare(key), key) for key in keys})
    unique = [names for names in candidates if len(set(names.values())) == len(names)]
    return max(unique, key=lambda names: sum(name in targets for name in names.values()))


def _stripped(keys: list[str], steps: int) -> list[str]:
    for _ in range(steps):
        for wrapper in _WRAPPERS:
            if any(key.startswith(f"{wrapper}.") for key in keys):
                keys = [key.removeprefix(f"{wrapper}.") for key in keys]
                break
    return keys


def _bare(name: str) -> str:
    """A key without the parts that wrappers put anywhere in it."""
    parts = [part for part in name.split(".") if part not in ("module", "_orig_mod")]
    return ".".join(parts[1:] if parts and parts[0] == "model" else parts)


def _mismatched(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in state.items():
        mine = own.get(key)
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor) or nn.parameter.is_lazy(mine):
            continue
        if mine.shape != value.shape:
            found.append(f"{key} (file {tuple(value.shape)}, network {tuple(mine.shape)})")
    return found


def _listed(what: str, keys: Iterable[str]) -> str:
    names = list(keys)
    if not names:
        return ""
    return f"{len(names)} {what}: {_first(names)}"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _replaced(content: Any, location: tuple[str, ...], state: Mapping[str, Any]) -> Any:
    if not location:
        return type(content)(state) if isinstance(content, dict) else dict(state)
    copy = type(content)(content)
    copy[location[0]] = _replaced(content[location[0]], location[1:], state)
    return copy


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(repr(key) for key in list(value)[:5])}" if value else "an empty dict"
    return f"a {type(value).__name__}"
