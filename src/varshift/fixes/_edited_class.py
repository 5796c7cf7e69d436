"""Classes that differ from a user's class in some calls, and otherwise pass for it.

An instance becomes one of such a class, so that ``train()``, ``to()``, hooks, ``state_dict`` and compilers
see nothing new: no child, no attribute, the same class name. There is one class for equal edits of one class,
and pickling and copying take the edits along.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn
from torch.nn.utils import parametrize

from varshift._errors import ModelError
from varshift.fixes._class_draft import ClassDraft
from varshift.fixes._edit import Edit, read_edit

_BASE, _EDITS = "_varshift_base", "_varshift_edits"
_CLASSES: WeakKeyDictionary[type, WeakValueDictionary[tuple[ClassEdit, ...], type]] = WeakKeyDictionary()


class ClassEdit(Edit):
    """An edit of a class: its data say nothing of a path, see `without_place`."""

    path: str

    @abstractmethod
    def build(self, draft: ClassDraft) -> None:
        """Makes its part of the new class.

        Raises:
            Refused: If the class does not have what it edits.
        """

    @abstractmethod
    def without_place(self) -> ClassEdit:
        """The same edit of any module of the class."""

    def supersedes(self, earlier: ClassEdit) -> bool:
        """Whether it takes the place of an earlier edit of the same class."""
        return False


def base_and_edits(cls: type) -> tuple[type, tuple[ClassEdit, ...]]:
    """The user's class and its edits; the class itself and none where it is not edited."""
    own = vars(cls)
    return (own[_BASE], own[_EDITS]) if _BASE in own else (cls, ())


def user_class(module: nn.Module) -> type:
    """The class that the user made a module of, under parametrizations and edits."""
    return base_and_edits(_under_parametrization(module))[0]


def edited_class(base: type, edits: tuple[ClassEdit, ...]) -> type:
    """The class that differs from another one by some edits; the same one for equal edits.

    Raises:
        Refused: If an edit does not fit the class.
    """
    if not edits:
        return base
    classes = _CLASSES.setdefault(base, WeakValueDictionary())
    cls = classes.get(edits)
    if cls is None:
        draft = ClassDraft(base)
        for edit in edits:
            edit.build(draft)
        cls = classes[edits] = _subclass(base, edits, draft.finish())
    return cls


def with_edit(module: nn.Module, edit: ClassEdit) -> type:
    """The class that a module is to become an instance of for one more edit.

    Raises:
        Refused: If the edit does not fit its class.
    """
    edit = edit.without_place()
    cls, under = type(module), _under_parametrization(module)
    base, edits = base_and_edits(under)
    kept = tuple(earlier for earlier in edits if not edit.supersedes(earlier))
    new = edited_class(base, (*kept, edit))
    if under is cls:
        return new
    # The class that a parametrization made is this module's own. It is made again on top of the edited one,
    # because taking the parametrization off deletes attributes of it and goes back to its base class.
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, (new,), own)


def edited_instance(edits: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """An instance of an edited class, for pickle and copy; its state is set afterwards.

    Pickles of whole modules name this function: where they are read, varshift has to be installed.

    Args:
        edits: The edits as JSON text.
        make: Makes an instance of the user's class.
        arguments: What it takes.
    """
    instance = make(*arguments)
    cls = type(instance)
    if base_and_edits(cls)[1]:  # made by a method that asks for the class of what it copies
        return instance
    read = tuple(read_edit(content) for content in json.loads(edits))
    instance.__class__ = edited_class(cls, cast(tuple[ClassEdit, ...], read))
    return instance


edited_instance.__module__ = "varshift.fixes"  # pickles name it there


def _under_parametrization(module: nn.Module) -> type:
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def _subclass(base: type, edits: tuple[ClassEdit, ...], members: dict[str, Any]) -> type:
    text = json.dumps([edit.to_json() for edit in edits])

    def reduce_ex(self: Any, protocol: Any) -> Any:
        reduced: Any = super(cls, self).__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced
        plain = tuple(base if argument is cls else argument for argument in arguments)
        return (edited_instance, (text, base if make is cls else make, plain), *rest)

    def prepare_scriptable(self: Any) -> Any:
        raise ModelError(
            f"{base.__qualname__} was changed by a fix, and TorchScript compiles the text of its original "
            "source: use torch.export or torch.compile, or script the model before it is fixed."
        )

    def copied(method: Any) -> Any:
        def copy_method(self: Any, *args: Any) -> Any:
            result = method(self, *args)
            if type(result) is base:
                result.__class__ = cls
            return result

        return copy_method

    members |= {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce_ex,
        "__prepare_scriptable__": prepare_scriptable,
        _BASE: base,
        _EDITS: edits,
    }
    for name in ("__deepcopy__", "__copy__"):
        if hasattr(base, name):
            members[name] = copied(getattr(base, name))
    metaclass: Any = type(base)
    cls = type.__new__(metaclass, base.__name__, (nn.Module,), members)
    try:
        cls.__bases__ = (base,)  # past `__init_subclass__`, which may keep a list of classes
    except TypeError:  # a class with slots
        cls = type.__new__(metaclass, base.__name__, (base,), members)
    return cls
