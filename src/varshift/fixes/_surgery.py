"""Changes to a live module tree, each with the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import ModelError
from varshift.model import restore_each, write

_ABSENT = object()
HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks"),
    *("_backward_hooks", "_is_full_backward_hook"),
)


class Refused(ModelError):  # noqa: N818 - an answer as much as an error
    """A change that cannot be made; its text says why and what to do instead."""


class Surgery:
    """A module tree under the knife, and the record of what was done to it.

    The way back is noted before each change, so that an interrupt in between costs nothing.

    Attributes:
        network: The root; another module once the root itself was replaced.
        replaced: For every parameter that left the tree, by identity, the parameter and its replacement,
            None where it has none.
        added: Identities of the parameters that came and replace none.
        data: The loader of the training, changed by cures of data; None without one.
        optimizer: The optimiser of the network, changed by cures of its groups; None without one.
    """

    def __init__(
        self, network: nn.Module, data: Any = None, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.network = network
        self.data = data
        self.optimizer = optimizer
        self.replaced: dict[int, tuple[nn.Parameter, nn.Parameter | None]] = {}
        self.added: set[int] = set()
        self._undo: list[Callable[[], None]] = []

    def module(self, path: str, cls: str | None = None) -> nn.Module:
        """The module of a path.

        Args:
            path: Its path, ``""`` for the root.
            cls: Its class name, where another one would be a reason to refuse.

        Raises:
            Refused: If there is none, or one of another class.
        """
        try:
            found = self.network.get_submodule(path)
        except AttributeError:
            raise Refused(f"the model has no module '{path}'.") from None
        if cls is not None and type(found).__name__ != cls:
            raise Refused(f"module '{path}' is a {type(found).__name__}, and was a {cls} in the plan.")
        return found

    def places(self, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Every place at which a module is registered: the parent and the name."""
        for parent in self.network.modules():
            for name, child in parent._modules.items():
                if child is module:
                    yield parent, name

    def swap(self, module: nn.Module, new: nn.Module, parameters: dict[str, str] | None = None) -> None:
        """Puts a module in the place of another, under all of its names.

        Its mode and hooks are carried over.

        Args:
            module: The module that leaves.
            new: The one that comes.
            parameters: For parameters of the old module, the name of the replacement of each in the new
                module; by default those of equal name and shape.
        """
        if new.training != module.training:
            stay = set(module.modules())  # what the new one takes over keeps a mode of its own
            for part in new.modules():
                if part not in stay:
                    part.training = module.training
        for name in HOOKS:
            if name in vars(module):
                vars(new)[name] = vars(module)[name]
        self._retire(module, new, parameters)
        for parent, name in list(self.places(module)):
            self._entry(parent._modules, name, new)
            if vars(parent).get(name) is module:  # kept as an attribute as well
                self._entry(vars(parent), name, new)
        if module is self.network:
            self._undo.append(lambda: setattr(self, "network", module))
            self.network = new

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of a module or of another object."""
        before = vars(owner).get(name, _ABSENT) if hasattr(owner, "__dict__") else getattr(owner, name)
        if isinstance(owner, nn.Module) and before is _ABSENT and hasattr(owner, name):
            before = getattr(owner, name)  # a parameter, a buffer, a child or a property

        def undo() -> None:
            if before is not _ABSENT:
                setattr(owner, name, before)
            elif hasattr(owner, name):
                delattr(owner, name)

        self._undo.append(undo)
        setattr(owner, name, value)

    def set_item(self, mapping: dict[str, Any], key: str, value: Any) -> None:
        """Sets an entry of a dictionary."""
        self._entry(mapping, key, value)

    def set_class(self, module: nn.Module, cls: type) -> None:
        """Makes a module an instance of another class of the same layout."""
        before = type(module)
        self._undo.append(lambda: setattr(module, "__class__", before))
        module.__class__ = cls

    def set_child(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        """Registers a child, or takes it out where it is None; the order of the others stays."""
        self._entry(parent._modules, name, _ABSENT if child is None else child)
        if child is not None:
            self._note_added(child.parameters())

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Overwrites a tensor in place."""
        before = tensor.detach().clone()
        self._undo.append(lambda: write(tensor, before))
        write(tensor, value)

    def replace_parameter(self, owner: nn.Module, name: str, new: nn.Parameter | None) -> None:
        """Puts a parameter in the place of another, or none."""
        old = owner._parameters.get(name)
        self._entry(owner._parameters, name, new)
        if old is not None and old is not new:
            self._note_replaced(old, new)
        elif old is None and new is not None:
            self._note_added([new])

    def undo(self) -> None:
        """Takes everything back, the last change first; an error does not stop it.

        An interrupt may: then all of it is taken back by the next call. Every step can be taken twice.
        """
        self.undo_to(0)

    def on_undo(self, restore: Callable[[], None]) -> None:
        """Has something else taken back together with the changes."""
        self._undo.append(restore)

    def mark(self) -> int:
        """The record's length, for `undo_to`."""
        return len(self._undo)

    def undo_to(self, mark: int) -> None:
        """Takes back what was done since a mark."""
        restore_each(self._undo[mark:][::-1])
        del self._undo[mark:]

    def _entry(self, entries: dict[str, Any], name: str, value: Any) -> None:
        order = dict(entries)

        def undo() -> None:
            entries.clear()
            entries.update(order)

        self._undo.append(undo)
        if value is _ABSENT:
            entries.pop(name, None)
        else:
            entries[name] = value

    def _retire(self, module: nn.Module, new: nn.Module, parameters: dict[str, str] | None) -> None:
        stay = {id(parameter) for parameter in new.parameters()}
        fresh = dict(new.named_parameters())
        for name, old in module.named_parameters():
            if id(old) in stay:
                continue
            replacement = fresh.get((parameters or {}).get(name, name))
            if replacement is not None and replacement.shape != old.shape:
                replacement = None
            self._note_replaced(old, replacement)
        replacements = {id(one) for _, one in self.replaced.values() if one is not None}
        before = {id(parameter) for parameter in module.parameters()}
        self._note_added(p for p in new.parameters() if id(p) not in before | replacements)

    def _note_replaced(self, old: nn.Parameter, new: nn.Parameter | None) -> None:
        self._undo.append(lambda: self.replaced.pop(id(old), None) and None)
        self.replaced[id(old)] = (old, new)

    def _note_added(self, parameters: Iterable[nn.Parameter]) -> None:
        fresh = {id(parameter) for parameter in parameters} - self.added
        self._undo.append(lambda: self.added.difference_update(fresh))
        self.added |= fresh


def refused(reasons: Sequence[Any], limit: int = 3) -> Refused:
    """A refusal for several places: the first reasons, and how many more there are."""
    more = len(reasons) - limit
    text = " ".join(map(str, reasons[:limit]))
    return Refused(f"{text} ({more} more like these.)" if more > 0 else text)


def like(module: nn.Module) -> dict[str, Any]:
    """Device and type of a module's numbers, as arguments for another module."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    if tensor is None:
        return {"device": None, "dtype": torch.get_default_dtype()}
    return {"device": tensor.device, "dtype": tensor.dtype}
