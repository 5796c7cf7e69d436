"""What an expression in the text of a function means, as far as that can be told without running it."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from varshift.fixes._rewrite_functions import cell_content, innermost
from varshift.fixes._source_code import CallPlace, FunctionSource

UNKNOWN: Any = object()


def owner_name(source: FunctionSource) -> str | None:
    """The name under which a method knows its module; None where it has none, or gives it another value."""
    arguments = source.node.args
    first = next(iter((*arguments.posonlyargs, *arguments.args)), None)
    return None if first is None or _is_stored(source.node, first.arg) else first.arg


class Names:
    """The names of one function.

    Args:
        source: The function.
        cls: Class of the module that its first argument is; None for a function that is no method.
        owner: The module itself, where its attributes may be looked at.
    """

    def __init__(self, source: FunctionSource, cls: type | None, owner: nn.Module | None = None) -> None:
        self._source = source
        self._cls = cls
        self._owner = owner
        self._self = owner_name(source) if cls is not None else None

    def value(self, node: ast.expr) -> Any:
        """The value of an expression, `UNKNOWN` where that is not certain."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.NamedExpr):
            return self.value(node.value)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        if is_super(node):
            return self._inherited(node)
        if isinstance(node.value, ast.Name) and node.value.id == self._self:
            return self._member(node.attr)
        base = self.value(node.value)
        if isinstance(base, (ModuleType, type)) or (self._owner is not None and isinstance(base, nn.Module)):
            return getattr(base, self._mangled(node.attr), UNKNOWN)
        return UNKNOWN

    def function(self, node: ast.expr, place: CallPlace) -> tuple[Any, FunctionType] | None:
        """The function of a name that an expression calls: as it is called, and without its decorators."""
        value = self.value(node)
        if value is UNKNOWN:
            value = self._defined(place)
        plain = innermost(value)
        return (value, plain) if plain is not None and plain.__qualname__ == place.function else None

    def _name(self, name: str) -> Any:
        function = self._source.function
        name = self._mangled(name)
        if name in function.__code__.co_varnames or name in function.__code__.co_cellvars:
            return self._local(name)
        if name in function.__code__.co_freevars:
            return cell_content(function.__closure__[function.__code__.co_freevars.index(name)])
        if any(name in _parameters(node) or _is_stored(node, name) for node in self._inner_functions()):
            return UNKNOWN
        return function.__globals__.get(name, getattr(builtins, name, UNKNOWN))

    def _local(self, name: str) -> Any:
        """A local variable that has one value from its only assignment, or the default of an argument."""
        if name == self._self:
            return self._owner if self._owner is not None else UNKNOWN
        values: list[Any] = []
        for node in ast.walk(self._source.node):
            if isinstance(node, ast.Assign) and any(_is_name(target, name) for target in node.targets):
                values.append(self.value(node.value))
            elif isinstance(node, (ast.NamedExpr, ast.AnnAssign)) and _is_name(node.target, name):
                values.append(self.value(node.value) if node.value is not None else UNKNOWN)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                values.extend(_imported(node, name))
            elif isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
                values.append(None)
        stores = sum(value is None for value in values)
        values = [value for value in values if value is not None]
        if stores > len(values) or len(values) > 1 or (values and name in _parameters(self._source.node)):
            return UNKNOWN
        return values[0] if values else self._default(name)

    def _default(self, name: str) -> Any:
        try:
            parameter = inspect.signature(self._source.function).parameters.get(name)
        except ValueError:
            return UNKNOWN
        if parameter is None or parameter.default is parameter.empty:
            return UNKNOWN
        return parameter.default

    def _member(self, name: str) -> Any:
        name = self._mangled(name)
        if self._owner is not None:
            value = vars(self._owner).get(name, self._owner._modules.get(name))
            if value is not None:
                return value
        held = inspect.getattr_static(self._cls, name, UNKNOWN)
        if isinstance(held, (staticmethod, classmethod)):
            return held.__func__ if isinstance(held, staticmethod) else UNKNOWN
        return held

    def _inherited(self, node: ast.Attribute) -> Any:
        call = node.value
        assert isinstance(call, ast.Call)
        start = self._name("__class__") if not call.args else self.value(call.args[0])
        order = self._cls.__mro__ if self._cls is not None else ()
        if start not in order:
            return UNKNOWN
        after = order[order.index(start) + 1 :]
        return next((vars(cls)[node.attr] for cls in after if node.attr in vars(cls)), UNKNOWN)

    def _defined(self, place: CallPlace) -> Any:
        """A function that its module defines, for a variable that holds one of several."""
        scopes = (sys.modules.get(place.module), self._source.function.__globals__)
        for scope in scopes:
            value: Any = scope
            for part in place.function.split("."):
                value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
            if value is not None:
                return value
        return UNKNOWN

    def _mangled(self, name: str) -> str:
        cls = self._source.class_name
        private = cls is not None and name.startswith("__") and not name.endswith("__")
        return f"_{cls.lstrip('_')}{name}" if private and cls is not None else name

    def _inner_functions(self) -> list[Any]:
        scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.GeneratorExp)
        nodes = ast.walk(self._source.node)
        kinds = (*scopes, ast.SetComp, ast.DictComp)
        return [node for node in nodes if isinstance(node, kinds) and node is not self._source.node]


def is_super(node: ast.expr) -> bool:
    """Whether an expression is an attribute of ``super()``."""
    call = node.value if isinstance(node, ast.Attribute) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "super"


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_stored(scope: ast.AST, name: str) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
        for node in ast.walk(scope)
    )


def _parameters(scope: ast.AST) -> set[str]:
    arguments = getattr(scope, "args", None)
    if not isinstance(arguments, ast.arguments):
        return set()
    return {child.arg for child in ast.walk(arguments) if isinstance(child, ast.arg)}


def _imported(node: ast.Import | ast.ImportFrom, name: str) -> list[Any]:
    """What an import inside the function binds to a name; empty if it binds another one."""
    values: list[Any] = []
    for alias in node.names:
        if (alias.asname or alias.name.partition(".")[0]) != name:
            continue
        if isinstance(node, ast.ImportFrom):
            module = sys.modules.get(node.module or "") if not node.level else None
            values.append(getattr(module, alias.name, UNKNOWN))
        else:
            values.append(sys.modules.get(alias.name if alias.asname else name, UNKNOWN))
    return values
