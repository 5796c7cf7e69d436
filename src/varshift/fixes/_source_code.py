"""From a live function to its source tree, and from a place in its text to what is written there."""

from __future__ import annotations
import __future__

import ast
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import CodeType, FunctionType
from typing import Any

from varshift.fixes._surgery import Refused
from varshift.flow import CallFrame

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Expression = ast.Call | ast.BinOp | ast.AugAssign  # what can be rewritten: `f(x)`, `x * y`, `x *= y`

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_FACTORY = "_varshift_scope"


@dataclass(frozen=True, slots=True)
class CallPlace:
    """A call in the text of a function, named so that it is found again in the next version of a library.

    An operation that is written without a call, such as ``x * mask``, has such a name, too.

    Attributes:
        function: Qualified name of the function, ``"Block.forward"``.
        text: The call as Python writes it, without its line breaks and comments.
        ordinal: Its number among those of equal text in this function, from 1.
        module: Name of the module that defines the function.
    """

    function: str
    text: str
    ordinal: int = 1
    module: str = ""


@dataclass(frozen=True, eq=False)
class FunctionSource:
    """A live function and its tree.

    Attributes:
        function: The function, without its decorators.
        node: Its tree, with the lines and columns of its file; shared, not to be changed.
        class_name: Name of the class in whose body it is written, by which private names are mangled.
        imports: Names that its file imports: Python compiles calls of their attributes in another way.
    """

    function: Any  # a FunctionType, which type checkers would bind
    node: FunctionNode
    class_name: str | None
    imports: frozenset[str]

    @property
    def file(self) -> str:
        """The file of the function."""
        return self.function.__code__.co_filename

    @cached_property
    def expressions(self) -> dict[Expression, tuple[str, int]]:
        """Its calls and operations, each with its text and its number among those of equal text."""
        counts: dict[str, int] = {}
        expressions: dict[Expression, tuple[str, int]] = {}
        for expression in expressions_in(self.node):
            text = ast.unparse(expression)
            counts[text] = counts.get(text, 0) + 1
            expressions[expression] = text, counts[text]
        return expressions

    def place(self, expression: Expression) -> CallPlace:
        """The name of one of its calls or operations."""
        name = self.function.__qualname__
        return CallPlace(name, *self.expressions[expression], self.function.__module__ or "")

    def call_at(self, frame: CallFrame) -> ast.Call | None:
        """The call that a frame was evaluating; None where it was another expression, or cannot be told."""
        on_line = [call for call in self._on_line(frame) if isinstance(call, ast.Call)]
        if frame.column is None:
            return on_line[0] if len(on_line) == 1 else None
        return next((call for call in on_line if _is_at(call, frame)), None)

    def expression_at(self, frame: CallFrame) -> Expression | None:
        """The call or operation that a frame was evaluating; None where that cannot be told."""
        return next((item for item in self._on_line(frame) if _is_at(item, frame)), None)

    def _on_line(self, frame: CallFrame) -> list[Expression]:
        lines = frame.line, frame.end_line
        return [item for item in self.expressions if (item.lineno, item.end_lineno) == lines]


def calls_in(node: ast.AST) -> Iterator[ast.Call]:
    """The calls in a tree in a fixed order, those of nested functions included."""
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def expressions_in(node: ast.AST) -> Iterator[Expression]:
    """The calls and operations in a tree in a fixed order, those of nested functions included."""
    return (child for child in ast.walk(node) if isinstance(child, Expression))


def copy_tree(node: Any) -> Any:
    """A copy of a tree: as `copy.deepcopy` makes it, several times as fast."""
    if isinstance(node, list):
        return [copy_tree(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    new = type(node).__new__(type(node))
    vars(new).update({name: copy_tree(value) for name, value in vars(node).items()})
    return new


def called_name(call: ast.Call) -> str:
    """The last name in what a call calls; empty where that has no name."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


@lru_cache(maxsize=512)
def source_of(function: FunctionType) -> FunctionSource:
    """The tree of a function.

    Args:
        function: The function itself, without decorators.

    Raises:
        Refused: If its source is not there, or is not what runs.
    """
    code = function.__code__
    name = f"{function.__module__}.{function.__qualname__}"
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not text:
        raise Refused(
            f"{name} has no source text ('{code.co_filename}' cannot be read): define it in a file or a "
            "notebook cell, and fix the model again."
        )
    stale = Refused(
        f"the text of {name} in '{code.co_filename}' is not the code that runs, as if the file was changed "
        "after it was imported: start a new process and fix the model again."
    )
    try:
        functions, imports = _contents(text)
    except SyntaxError:
        raise stale from None
    for node, class_name in functions.get((code.co_firstlineno, code.co_name), ()):
        source = FunctionSource(function, node, class_name, imports)
        if _is_same(compiled(source, node), code):
            return source
    raise stale


def compiled(source: FunctionSource, node: FunctionNode) -> CodeType:
    """The code of a tree that takes the place of a function's own: same file, lines, names and scope."""
    code = source.function.__code__
    lambda_name = ast.Name("_varshift_lambda", ast.Store())
    statement: ast.stmt = ast.Assign([lambda_name], node) if isinstance(node, ast.Lambda) else node
    names = [name for name in code.co_freevars if source.class_name is None or name != "__class__"]
    bound = source.class_name or code.co_name
    if source.class_name is not None:
        statement = ast.ClassDef(source.class_name, [], [], [statement], [])
    # Free variables become arguments of a function around the statement; what the statement itself defines
    # must stay a global variable there, as it is in the file.
    body: list[ast.stmt] = [statement]
    if bound not in names and not isinstance(statement, ast.Assign):
        body.insert(0, ast.Global([bound]))
    scope = ast.FunctionDef(
        _FACTORY,
        ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, []),
        body,
        [],
    )
    if source.class_name is None and isinstance(node, ast.FunctionDef) and node.name not in names:
        scope.body.insert(0, ast.Global([node.name]))  # a function of a module that calls itself
    for new in (statement, scope):
        if "type_params" in new._fields and not hasattr(new, "type_params"):
            new.type_params = []  # type: ignore[attr-defined]
    imports = [ast.Import([ast.alias(name)]) for name in sorted(source.imports)]  # never run
    tree = ast.fix_missing_locations(ast.Module([*imports, scope], []))
    flags = code.co_flags & _FUTURES
    whole = compile(tree, code.co_filename, "exec", flags=flags, dont_inherit=True)
    inner = next(nested for nested in _nested(whole) if nested.co_name == code.co_name)
    return _requalified(inner, inner.co_qualname, code.co_qualname)


@lru_cache(maxsize=64)
def _contents(
    text: str,
) -> tuple[dict[tuple[int, str], list[tuple[FunctionNode, str | None]]], frozenset[str]]:
    """The functions of a file by first line and name, each with the class around it; the names it imports."""
    functions: dict[tuple[int, str], list[tuple[FunctionNode, str | None]]] = {}
    imports: set[str] = set()

    def visit(node: ast.AST, class_name: str | None, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, FunctionNode)
            if isinstance(child, FunctionNode):
                decorators = [] if isinstance(child, ast.Lambda) else child.decorator_list
                first = min([child.lineno, *(item.lineno for item in decorators)])
                name = "<lambda>" if isinstance(child, ast.Lambda) else child.name
                functions.setdefault((first, name), []).append((child, class_name))
            elif top and isinstance(child, (ast.Import, ast.ImportFrom)):
                imports.update(alias.asname or alias.name.partition(".")[0] for alias in child.names)
            is_class = isinstance(child, ast.ClassDef)
            visit(child, child.name if is_class else class_name, top and not (is_function or is_class))

    visit(ast.parse(text), None, True)
    return functions, frozenset(imports - {"*"})


def _is_same(code: CodeType, other: CodeType) -> bool:
    same = code.co_code == other.co_code and code.co_names == other.co_names
    return same and code.co_varnames == other.co_varnames and list(code.co_lines()) == list(other.co_lines())


def _is_at(expression: Expression, frame: CallFrame) -> bool:
    return (expression.col_offset, expression.end_col_offset) == (frame.column, frame.end_column)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """The code objects inside another one, the outermost first."""
    level = [code]
    while level:
        level = [inner for outer in level for inner in outer.co_consts if isinstance(inner, CodeType)]
        yield from level


def _requalified(code: CodeType, prefix: str, new: str) -> CodeType:
    """A code object and those inside it under their original qualified names."""
    constants = tuple(
        _requalified(item, prefix, new) if isinstance(item, CodeType) else item for item in code.co_consts
    )
    name = code.co_qualname
    return code.replace(
        co_qualname=new + name[len(prefix) :] if name.startswith(prefix) else name, co_consts=constants
    )
