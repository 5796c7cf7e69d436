"""Random states: those of the process, and the generators that a loader, a sampler or a model holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Sampler

_Restore = Callable[[], None]
# Data sets may hold millions of items; generators are held by name, not hidden among them.
_LONGEST, _DEEPEST = 1000, 6
_GENERATORS = (
    *(torch.Generator, random.Random),
    *(np.random.RandomState, np.random.Generator, np.random.BitGenerator),
)


def seed_all(seed: int) -> None:
    """Seeds the process's generators of torch, NumPy and Python."""
    # Not `torch.manual_seed`: that has CUDA seeded, too, whenever the process comes to use it.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def keep_process_generators() -> list[_Restore]:
    """Notes where the process's generators are; the functions returned put them back there."""
    restores: list[_Restore] = []
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    restores.append(lambda: torch.set_rng_state(torch_state))
    restores.append(lambda: np.random.set_state(numpy_state))
    restores.append(lambda: random.setstate(python_state))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        cuda_states = torch.cuda.get_rng_state_all()
        restores.append(lambda: torch.cuda.set_rng_state_all(cuda_states))
    if torch.backends.mps.is_available():
        mps_state = torch.mps.get_rng_state()
        restores.append(lambda: torch.mps.set_rng_state(mps_state))
    return restores


def keep_generators(*holders: Any) -> list[_Restore]:
    """Notes the states of all generators that objects hold, and what samplers know of their own progress.

    A loader may take a new generator for every epoch, seeded by the one it had: that one comes back, too.
    """
    restores: list[_Restore] = []
    for item in _held(holders):
        own = getattr(item, "__dict__", None) or {}
        drawn_from = {name: value for name, value in own.items() if isinstance(value, _GENERATORS)}
        if drawn_from:
            restores.append(_keep_bindings(item, drawn_from))
        restore = keep_generator(item)
        if restore is not None:
            restores.append(restore)
        elif isinstance(item, (Sampler, BatchSampler)) and hasattr(item, "__dict__"):
            restores.append(_keep_attributes(item))
    return restores


def keep_generator(item: Any) -> _Restore | None:
    """Notes the state of one generator; None if the object is none."""
    if isinstance(item, torch.Generator):
        state = item.get_state()
        return lambda: item.set_state(state) and None
    if isinstance(item, random.Random) and not isinstance(item, random.SystemRandom):
        python_state = item.getstate()
        return lambda: item.setstate(python_state)
    if isinstance(item, np.random.RandomState):
        numpy_state = item.get_state()
        return lambda: item.set_state(numpy_state)
    bits = item.bit_generator if isinstance(item, np.random.Generator) else item
    if isinstance(bits, np.random.BitGenerator):
        bit_state = bits.state
        return lambda: setattr(bits, "state", bit_state)
    return None


def _keep_bindings(item: Any, values: Mapping[str, Any]) -> _Restore:
    def restore() -> None:
        for name, value in values.items():
            if vars(item).get(name) is not value:
                vars(item)[name] = value

    return restore


def _keep_attributes(item: Any) -> _Restore:
    saved = dict(vars(item))

    def restore() -> None:
        if vars(item) != saved:
            vars(item).clear()
            vars(item).update(saved)

    return restore


def _held(holders: tuple[Any, ...]) -> Iterator[Any]:
    """All objects that can be reached through attributes and short containers, each once."""
    seen: set[int] = set()
    level: list[Any] = list(holders)
    for _ in range(_DEEPEST):
        following: list[Any] = []
        for item in level:
            if id(item) in seen or isinstance(item, (str, bytes, int, float, Tensor, np.ndarray, type)):
                continue
            seen.add(id(item))
            yield item
            following.extend(_inside(item))
        level = following


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        if len(item) <= _LONGEST:
            yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        if len(item) <= _LONGEST:
            yield from item
    elif isinstance(item, nn.Module):
        return
    elif callable(item) and hasattr(item, "__self__"):
        yield item.__self__
    elif callable(item) and hasattr(item, "__closure__"):
        for cell in item.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not set yet
                continue
    if hasattr(item, "__dict__") and not callable(getattr(item, "__get__", None)):
        yield from vars(item).values()
    for cls in type(item).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(item, name):
                yield getattr(item, name)


def own_iteration(loader: Any) -> Any:
    """A DataLoader to iterate over without ending an iteration of the user's with persistent workers."""
    if not isinstance(loader, DataLoader) or "_iterator" not in vars(loader):
        return loader
    twin = object.__new__(type(loader))
    twin.__dict__.update(vars(loader), _iterator=None)
    return twin


def seed_held(model: nn.Module, seed: int) -> None:
    """Seeds the generators that a model's modules hold themselves, in attributes and short containers."""
    seed_generators(seed, *(value for module in model.modules() for value in vars(module).values()))


def seed_generators(seed: int, *holders: Any) -> None:
    """Seeds all generators that objects hold, in attributes and short containers."""
    for number, item in enumerate(_held(holders)):
        own = (seed + number) % 2**32
        if isinstance(item, torch.Generator):
            item.manual_seed(own)
        elif isinstance(item, (random.Random, np.random.RandomState)):
            item.seed(own)
        elif isinstance(item, np.random.Generator):
            item.bit_generator.state = type(item.bit_generator)(own).state
