"""From what hosts of training call their data to what yields its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from varshift._errors import DataError


def loader_of(loader: Any, *, argument: str = "loader", trains: bool = True) -> Any:
    """What yields the batches, where a host of training was passed that holds it.

    A data module of Lightning gives the loader of its ``train_dataloader()``, a trainer of Lightning the one
    that it trains on, fastai's ``DataLoaders`` that of training, a loader that accelerate prepared the plain
    one inside: the other writes down who iterates over it, for the accumulation of gradients.
    Anything else is returned as it is.

    Args:
        loader: What the user passed.
        argument: What errors call it.
        trains: Whether batches of training are meant. Where others are, what holds both is refused.

    Raises:
        DataError: If it holds several loaders, or cannot give one without being changed.
    """
    kind = type(loader).__name__
    if type(loader).__module__.partition(".")[0] == "accelerate":
        inner = getattr(loader, "base_dataloader", None)
        return loader if inner is None else loader_of(inner, argument=argument, trains=trains)
    if isinstance(loader, (list, tuple, dict)):
        _refuse_several(loader, argument, trains)
        return loader
    if isinstance(loader, (Tensor, DataLoader, Mapping)) or loader is None:
        return loader
    if isinstance(getattr(loader, "loaders", None), (list, tuple)) and hasattr(type(loader), "train"):
        # fastai's: several loaders in one object
        if not trains:
            raise DataError(f"{argument} is a {kind}, which holds several loaders: pass one, as its .valid.")
        return loader.train
    if hasattr(loader, "__iter__"):
        return loader
    if hasattr(type(loader), "train_dataloader"):
        return _of_lightning(loader, argument, trains)
    if callable(getattr(type(loader), "get_train_dataloader", None)):
        raise DataError(f"{argument} is a {kind}: pass its get_train_dataloader().")
    return loader


def _of_lightning(host: Any, argument: str, trains: bool) -> Any:
    kind = type(host).__name__
    if not trains:
        raise DataError(
            f"{argument} is a {kind}, which holds several loaders: pass one, as its val_dataloader()."
        )
    try:
        loader = host.train_dataloader
        loader = loader() if callable(loader) and not hasattr(loader, "__iter__") else loader
    except Exception as error:
        raise DataError(
            f"{argument} is a {kind} whose train_dataloader() fails ({type(error).__name__}: {error}): call "
            "its prepare_data() and setup('fit') first, or pass a loader."
        ) from error
    if loader is None:
        raise DataError(f"{argument} is a {kind} that has no loader of training data yet: pass a loader.")
    return loader_of(loader, argument=argument)


def _refuse_several(loaders: Any, argument: str, trains: bool) -> None:
    items = list(loaders.values()) if isinstance(loaders, Mapping) else list(loaders)
    if not items or not all(isinstance(item, DataLoader) for item in items):
        return
    keys = list(loaders) if isinstance(loaders, Mapping) else range(len(items))
    which = "training data" if trains else "evaluation data"
    name = argument.rpartition(" ")[2]  # of what a command line option names, the text
    raise DataError(
        f"{argument} is a {type(loaders).__name__} of {len(items)} loaders ({', '.join(map(repr, keys))}): "
        f"pass the one of the {which}, {name}[{keys[0 if trains else -1]!r}] for example."
    )
