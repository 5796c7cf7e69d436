"""A class in the making: a user's class with calls of its methods, and of what they call, edited."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from varshift._sites import Source
from varshift.fixes._rewrite_actions import linked_call
from varshift.fixes._rewrite_functions import methods_of, rewrapped, with_code
from varshift.fixes._rewrite_names import UNKNOWN, Names, is_super, owner_name
from varshift.fixes._source_code import (
    CallPlace,
    Expression,
    FunctionSource,
    compiled,
    copy_tree,
    expressions_in,
    source_of,
)
from varshift.fixes._surgery import Refused

_OWNER = "_varshift_owner"  # the added argument of a private copy


@dataclass(eq=False)
class EditedText:
    """A function whose calls are edited.

    Attributes:
        source: The function as it was.
        held: What holds it: the function, or what decorators made of it.
        cls: Class of the module whose method it is; None for a private copy of another function.
        node: A copy of its tree.
        expressions: The calls and operations in it by text and number.
        originals: For those of `node`, by identity, the same in the tree as it was.
    """

    source: FunctionSource
    held: Any
    cls: type | None
    node: Any = field(init=False)
    expressions: dict[tuple[str, int], Expression] = field(init=False, default_factory=dict)
    originals: dict[int, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.node = copy_tree(self.source.node)
        copies = expressions_in(self.node)
        for (original, key), expression in zip(self.source.expressions.items(), copies, strict=True):
            self.expressions[key] = expression
            self.originals[id(expression)] = original

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
        call = self.expression(place)
        if not isinstance(call, ast.Call):
            raise Refused(f"`{place.text}` in {self.name} is no call.")
        return call

    def expression(self, place: CallPlace) -> Expression:
        """The call or the operation of a place.

        Raises:
            Refused: If it is not there.
        """
        expression = self.expressions.get((place.text, place.ordinal)) or self._grown(place)
        if expression is None:
            number = f" (number {place.ordinal})" if place.ordinal > 1 else ""
            raise Refused(
                f"{self.name} has no call `{place.text}`{number}: its code is not the one that the edit was "
                "planned for. Check the model again."
            )
        return expression

    def _grown(self, place: CallPlace) -> ast.Call | None:
        """The only call that has all that a place has, and further keyword arguments: of a newer version."""
        try:
            old = ast.parse(place.text, mode="eval").body
        except SyntaxError:
            return None
        calls = [
            call
            for call in self.expressions.values()
            if isinstance(old, ast.Call) and isinstance(call, ast.Call) and _has_all_of(call, old)
        ]
        return calls[0] if len(calls) == 1 and place.ordinal == 1 else None

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

    def line_of(self, expression: Expression) -> Source:
        """The line of a call or an operation."""
        return Source(self.source.file, expression.lineno)

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
        text = self.text_of(chain)
        return text, text.call(chain[-1])

    def text_of(self, chain: Sequence[CallPlace]) -> EditedText:
        """The text that the last place of a chain is in, as for `find`.

        Raises:
            Refused: As for `find`.
        """
        text = self._method(chain[0])
        for outer, inner in itertools.pairwise(chain):
            text = self._copy(text, text.call(outer), inner)
        return text

    def replace(self, text: EditedText, call: ast.Call, method: Any) -> None:
        """Has a call made by a new method of the class, which takes the function that was called first."""
        self._claim(call)
        self._redirect(text, call, self._add(method))

    def replace_operation(self, text: EditedText, expression: Expression, method: Any) -> None:
        """Has an operation made by a new method of the class, which takes its operands.

        Args:
            text: Where it is written.
            expression: ``x * mask``, ``x *= mask``, or a call of a method of a tensor, ``x.mul(mask)``.
            method: The method.
        """
        self._claim(expression)
        function = _attribute(text.owner, self._add(method), expression)
        if isinstance(expression, ast.Call):
            assert isinstance(expression.func, ast.Attribute)
            expression.args = [expression.func.value, *expression.args]
            expression.func = function
            return
        if isinstance(expression, ast.BinOp):
            new: ast.AST = ast.Call(function, [expression.left, expression.right], [])
        else:
            target = copy_tree(expression.target)
            target.ctx = ast.Load()
            call = ast.copy_location(ast.Call(function, [target, expression.value], []), expression)
            new = ast.Assign([expression.target], call)
        text.node = _Exchanged(expression, ast.copy_location(new, expression)).visit(text.node)

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
        methods = methods_of(self.base, lambda function: function.__qualname__ == place.function)
        for name, held, function in methods:
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

    def _claim(self, expression: Expression) -> None:
        if id(expression) in self._edited:
            raise Refused("two edits concern one call: undo the first one, or check the model again.")
        self._edited.add(id(expression))

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


class _Exchanged(ast.NodeTransformer):
    """Puts a node in the place of another one."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Exchanges the node."""
        return self._new if node is self._old else self.generic_visit(node)


def _attribute(owner: str, name: str, expression: Expression) -> ast.Attribute:
    place = expression.func if isinstance(expression, ast.Call) else expression
    value = ast.copy_location(ast.Name(owner, ast.Load()), place)
    return ast.copy_location(ast.Attribute(value, name, ast.Load()), place)


def _has_all_of(call: ast.Call, old: ast.Call) -> bool:
    """Whether a call has the function and the arguments of another one, by their texts."""
    same = [ast.unparse(node) for node in (call.func, *call.args)]
    keywords = {ast.unparse(keyword) for keyword in call.keywords}
    wanted = {ast.unparse(keyword) for keyword in old.keywords}
    return same == [ast.unparse(node) for node in (old.func, *old.args)] and wanted <= keywords


def _add_argument(node: Any, name: str) -> None:
    arguments: ast.arguments = node.args
    first = arguments.posonlyargs or arguments.args
    place = first[0] if first else node
    first.insert(0, ast.copy_location(ast.arg(name), place))
