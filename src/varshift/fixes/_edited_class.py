"""Classes that differ from a user's class in some calls, and otherwise pass for it.

An instance becomes one of such a class, so that ``train()``, ``to()``, hooks, ``state_dict`` and compilers
see nothing new: no child, no attribute, the same class name. There is one class for equal edits of one class,
and pickling and copying take the edits along.
"""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn
from torch.nn.utils import parametrize

from varshift._errors import ModelError
from varshift._sites import Source
from varshift.fixes._edit import Edit, read_edit
from varshift.fixes._rewrite_actions import linked_call
from varshift.fixes._rewrite_functions import innermost, rewrapped, with_code
from varshift.fixes._rewrite_names import UNKNOWN, Names, is_super, owner_name
from varshift.fixes._source_code import CallPlace, FunctionSource, calls_in, compiled, source_of
from varshift.fixes._surgery import Refused

_OWNER = "_varshift_owner"  # the added argument of a private copy
_BASE, _EDITS = "_varshift_base", "_varshift_edits"
_CLASSES: WeakKeyDictionary[type, WeakValueDictionary[tuple[ClassEdit, ...], type]] = WeakKeyDictionary()


class ClassEdit(Edit):
    """An edit of a class: its data say nothing of a path, see `without_place`."""

    path: str

    def build(self, draft: ClassDraft) -> None:
        """Makes its part of the new class.

        Raises:
            Refused: If the class does not have what it edits.
        """
        raise NotImplementedError

    def without_place(self) -> ClassEdit:
        """The same edit of any module of the class."""
        raise NotImplementedError

    def supersedes(self, earlier: ClassEdit) -> bool:
        """Whether it takes the place of an earlier edit of the same class."""
        return False


@dataclass(eq=False)
class EditedText:
    """A function whose calls are edited.

    Attributes:
        source: The function as it was.
        held: What holds it: the function, or what decorators made of it.
        cls: Class of the module whose method it is; None for a private copy of another function.
        node: A copy of its tree.
        calls: The calls in it by text and number.
        originals: For the calls of `node`, by identity, the call in the tree as it was.
    """

    source: FunctionSource
    held: Any
    cls: type | None
    node: Any = field(init=False)
    calls: dict[tuple[str, int], ast.Call] = field(init=False, default_factory=dict)
    originals: dict[int, ast.Call] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.node = copy.deepcopy(self.source.node)
        for (original, key), call in zip(self.source.calls.items(), calls_in(self.node), strict=True):
            self.calls[key] = call
            self.originals[id(call)] = original

    @property
    def name(self) -> str:
        """Qualified name of the function."""
        return self.source.function.__qualname__

    @property
    def owner(self) -> str:
        """The name of the module in its text.

        Raises:
            Refused: If it has none.
        """
        name = owner_name(self.source) if self.cls is not None else _OWNER
        if name is None:
            raise Refused(
                f"{self.name} has no name for its module throughout (no `self`, or one that is given another "
                "value): give it one, and fix the model again."
            )
        return name

    def call(self, place: CallPlace) -> ast.Call:
        """The call of a place.

        Raises:
            Refused: If it is not there.
        """
        call = self.calls.get((place.text, place.ordinal))
        if call is None:
            number = f" (number {place.ordinal})" if place.ordinal > 1 else ""
            raise Refused(
                f"{self.name} has no call `{place.text}`{number}: its code is not the one that the edit was "
                "planned for. Check the model again."
            )
        return call

    def value_of(self, call: ast.Call, owner: nn.Module | None = None) -> Any:
        """What a call calls; `UNKNOWN` where its text, and the module if it is given, do not tell."""
        return Names(self.source, self.cls, owner).value(self.originals[id(call)].func)

    def called(self, call: ast.Call) -> tuple[Any, bool]:
        """What a call calls, None where its text does not tell, and whether that takes the module first."""
        value = self.value_of(call)
        function = self.originals[id(call)].func
        bound = is_super(function) or (self.is_member(call) and isinstance(value, FunctionType))
        if bound and self.cls is not None and isinstance(function, ast.Attribute):
            bound = not isinstance(inspect.getattr_static(self.cls, function.attr, None), staticmethod)
        return (None if value is UNKNOWN else value), bound

    def is_member(self, call: ast.Call) -> bool:
        """Whether a call is one of an attribute of the module."""
        function = self.originals[id(call)].func
        base = function.value if isinstance(function, ast.Attribute) else None
        return self.cls is not None and isinstance(base, ast.Name) and base.id == owner_name(self.source)

    def line_of(self, call: ast.Call) -> Source:
        """The line of a call."""
        return Source(self.source.file, call.lineno)

    def value(self) -> Any:
        """What holds the function now: the edited one, under its decorators."""
        new = with_code(self.source.function, compiled(self.source, self.node))
        return rewrapped(self.held, self.source.function, new)


class ClassDraft:
    """A class in the making.

    Args:
        base: The class that is edited.
    """

    def __init__(self, base: type) -> None:
        self.base = base
        self._methods: dict[str, EditedText] = {}
        self._copies: dict[int, tuple[str, EditedText]] = {}
        self._selves: dict[str, EditedText] = {}  # copies that name themselves, by the name that they use
        self._edited: set[int] = set()
        self._members: dict[str, Any] = {}
        self._wrappers: list[tuple[str, Callable[[Any], Any]]] = []

    def find(self, chain: Sequence[CallPlace]) -> tuple[EditedText, ast.Call]:
        """The last call of a chain: in a method of the class, or in private copies of what it calls.

        Args:
            chain: Calls from a method inwards, each in the function that the one before runs.

        Raises:
            Refused: If a call is not there, or cannot be followed.
        """
        text = self._method(chain[0])
        for outer, inner in itertools.pairwise(chain):
            text = self._copy(text, text.call(outer), inner)
        return text, text.call(chain[-1])

    def replace(self, text: EditedText, call: ast.Call, method: Any) -> None:
        """Has a call made by a new method of the class, which takes the function that was called first."""
        self._claim(call)
        self._redirect(text, call, self._add(method))

    def wrap_receiver(self, text: EditedText, call: ast.Call, method: Any) -> None:
        """Passes the object whose method is called through a new method of the class."""
        self._claim(call)
        assert isinstance(call.func, ast.Attribute)
        function = _attribute(text.owner, self._add(method), call)
        call.func.value = ast.copy_location(ast.Call(function, [call.func.value], []), call.func.value)

    def wrap_forward(self, wrapper: Callable[[Any], Any]) -> None:
        """Puts a function around `forward`, edited or not."""
        self.wrap("forward", wrapper)

    def wrap(self, name: str, wrapper: Callable[[Any], Any]) -> None:
        """Puts a function around a method, edited or not."""
        self._wrappers.append((name, wrapper))

    def finish(self) -> dict[str, Any]:
        """The members of the class."""
        for name, text in self._copies.values():
            copied = text.value()
            self._members[name] = copied if text.cls is not None else linked_call(text.held, copied)
        for name, text in self._selves.items():
            self._members[name] = text.value()
        for name, text in self._methods.items():
            self._members[name] = text.value()
        for name, wrapper in self._wrappers:
            self._members[name] = wrapper(self._members.get(name) or getattr(self.base, name))
        return self._members

    def _method(self, place: CallPlace) -> EditedText:
        for cls in self.base.__mro__:
            for name, held in vars(cls).items():
                function = innermost(held)
                if function is None or function.__qualname__ != place.function:
                    continue
                if inspect.getattr_static(self.base, name) is not held:
                    continue  # another class overrides it
                if isinstance(held, (staticmethod, classmethod)):
                    raise Refused(f"{place.function} has no module to ask: rewrite the call of it instead.")
                if hasattr(held, "_torchdynamo_orig_callable"):
                    raise Refused(
                        f"{place.function} is compiled: fix the model first, and compile it afterwards."
                    )
                if name not in self._methods:
                    self._methods[name] = EditedText(source_of(function), held, self.base)
                return self._methods[name]
        raise Refused(
            f"{self.base.__qualname__} has no method {place.function}: the code is not the one that the edit "
            "was planned for. Check the model again."
        )

    def _copy(self, text: EditedText, call: ast.Call, inner: CallPlace) -> EditedText:
        """A private copy of the function that a call runs, for this call only."""
        if id(call) in self._copies:
            return self._copies[id(call)][1]
        original = text.originals[id(call)]
        target = Names(text.source, text.cls).function(original.func, inner)
        if target is None:
            raise Refused(
                f"`{ast.unparse(original)}` in {text.name} does not call {inner.function}, or that cannot be "
                "told from the text: change the call by hand."
            )
        held, function = target
        inherited = is_super(original.func)
        copied = EditedText(source_of(function), held, self.base if inherited else None)
        self._claim(call)
        name = self._add(None)
        if inherited:
            call.func = _attribute(text.owner, name, call)
        else:
            _add_argument(copied.node, _OWNER)
            self._keep_to_itself(copied, function)
            self._redirect(text, call, name)
        self._copies[id(call)] = (name, copied)
        return copied

    def _keep_to_itself(self, copied: EditedText, function: FunctionType) -> None:
        """Has a private copy name itself where it names its function: modes of torch call what is named."""
        name = function.__name__
        if function.__globals__.get(name) is not function:
            return
        reads = _Renamed(name, copied.owner, f"_varshift_call_{len(self._members) + 1}")
        reads.visit(copied.node)
        if reads.count:
            self._selves[self._add(None)] = copied

    def _redirect(self, text: EditedText, call: ast.Call, name: str) -> None:
        call.args = [call.func, *call.args]
        call.func = _attribute(text.owner, name, call)

    def _claim(self, call: ast.Call) -> None:
        if id(call) in self._edited:
            raise Refused("two edits concern one call: undo the first one, or check the model again.")
        self._edited.add(id(call))

    def _add(self, method: Any) -> str:
        name = f"_varshift_call_{len(self._members) + 1}"
        self._members[name] = method
        return name


class _Renamed(ast.NodeTransformer):
    """Reads an attribute of the module where a name is read."""

    def __init__(self, name: str, owner: str, attribute: str) -> None:
        self._name, self._owner, self._attribute = name, owner, attribute
        self.count = 0

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replaces the name."""
        if node.id != self._name or not isinstance(node.ctx, ast.Load):
            return node
        self.count += 1
        owner = ast.copy_location(ast.Name(self._owner, ast.Load()), node)
        return ast.copy_location(ast.Attribute(owner, self._attribute, ast.Load()), node)


def base_and_edits(cls: type) -> tuple[type, tuple[ClassEdit, ...]]:
    """The user's class and its edits; the class itself and none where it is not edited."""
    own = vars(cls)
    return (own[_BASE], own[_EDITS]) if _BASE in own else (cls, ())


def user_class(module: nn.Module) -> type:
    """The class that the user made a module of, under parametrizations and edits."""
    cls = type(module)
    return base_and_edits(cls.__bases__[0] if parametrize.is_parametrized(module) else cls)[0]


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
    cls = type(module)
    own_class = parametrize.is_parametrized(module)
    base, edits = base_and_edits(cls.__bases__[0] if own_class else cls)
    kept = tuple(earlier for earlier in edits if not edit.supersedes(earlier))
    new = edited_class(base, (*kept, edit))
    if not own_class:
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


def _attribute(owner: str, name: str, call: ast.Call) -> ast.Attribute:
    value = ast.copy_location(ast.Name(owner, ast.Load()), call.func)
    return ast.copy_location(ast.Attribute(value, name, ast.Load()), call.func)


def _add_argument(node: Any, name: str) -> None:
    arguments: ast.arguments = node.args
    first = arguments.posonlyargs or arguments.args
    place = first[0] if first else node
    first.insert(0, ast.copy_location(ast.arg(name), place))
