"""The user's own module inside wrappers, and one name per module."""

from __future__ import annotations

from typing import Any

from torch import nn

# Wrappers that hold the network as `module`, by name: most are imported only by those who use them.
_WRAPPERS = frozenset(
    [
        *("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"),
        *("AveragedModel", "DeepSpeedEngine"),
    ]
)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers of compilation, data parallelism and averaging, however deeply nested."""
    while True:
        inner = inside_wrapper(model)
        if inner is None or inner is model:
            return model
        model = inner


def inside_wrapper(model: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None for any other module."""
    # Looked up where modules are registered: a module of the user's may pass attributes of others on.
    inner = vars(model).get("_modules", {}).get("_orig_mod")
    if isinstance(inner, nn.Module):
        return inner
    if _WRAPPERS.isdisjoint(base.__name__ for base in type(model).__mro__):
        return None
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else None


def compiled_from(function: Any) -> Any:
    """The function that `torch.compile` was applied to; None if it was not."""
    if isinstance(function, nn.Module):
        return None
    inner = getattr(function, "_torchdynamo_orig_callable", None)
    return inner if callable(inner) else None


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Maps every path of every module of the unwrapped model to the first path of the same module."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for path, module in unwrap(model).named_modules(remove_duplicate=False):
        names[path] = first.setdefault(id(module), path)
    return names


def canonical_tensor(names: dict[str, str], path: str) -> str:
    """Canonical name of a parameter or buffer given under any alias of its module."""
    owner, _, leaf = path.rpartition(".")
    owner = names.get(owner, owner)
    return f"{owner}.{leaf}" if owner else leaf
