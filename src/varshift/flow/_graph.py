"""Who reads what: raw nodes with aliases and in-place writes resolved, and what each value derives from."""

from __future__ import annotations

from dataclasses import dataclass, field

from varshift.flow._ops import OpInfo, bind, describe
from varshift.flow._raw import RawNode, iterate_refs
from varshift.flow._vocabulary import OVERWRITES, REFILLS, SHAPE_ARGUMENTS, SHAPE_ONLY


@dataclass(frozen=True, slots=True)
class Operand:
    """A value that a node reads.

    Attributes:
        argument: Name of the argument, ``""`` for the earlier content of memory that is written in part.
        ref: The node named in the arguments.
        node: The node whose result is found there: the last in-place write to that memory.
    """

    argument: str
    ref: int
    node: int


@dataclass(slots=True)
class Graph:
    """Raw nodes with their data dependencies.

    Attributes:
        nodes: The raw nodes.
        infos: Their operators.
        operands: What each node reads by value.
        inputs: The same as node indices, without repetition.
        users: Nodes that read each node by value.
        signal: Whether a value derives from the inputs of the network.
        learned: Whether it derives from parameters or buffers.
        outputs: Indices of the output nodes.
        writes: Nodes that write in place, in order, by the node that owns the memory.
    """

    nodes: list[RawNode]
    infos: list[OpInfo] = field(default_factory=list)
    operands: list[tuple[Operand, ...]] = field(default_factory=list)
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    users: list[list[int]] = field(default_factory=list)
    signal: list[bool] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    writes: dict[int, list[int]] = field(default_factory=dict)

    def signals(self, index: int) -> list[Operand]:
        """The operands of a node that derive from the inputs of the network."""
        return [operand for operand in self.operands[index] if self.signal[operand.node]]

    def elements(self, index: int) -> int:
        """Number of elements of a node's result."""
        return elements(self.nodes[index].shape)


def elements(shape: tuple[int, ...] | None) -> int:
    """Number of elements of a shape, 0 when unknown."""
    if shape is None:
        return 0
    count = 1
    for size in shape:
        count *= size
    return count


def build_graph(nodes: list[RawNode]) -> Graph:
    """Resolves aliases and in-place writes and derives what each value depends on."""
    graph = Graph(nodes)
    memory = _Memory(nodes)
    for index, node in enumerate(nodes):
        info = describe(node)
        graph.infos.append(info)
        if node.role in ("call", "output"):
            operands = memory.record(index, node, info)
        else:
            operands = ()
            memory.own(index)
        inputs = tuple(dict.fromkeys(operand.node for operand in operands))
        graph.operands.append(operands)
        graph.inputs.append(inputs)
        graph.users.append([])
        for source in inputs:
            graph.users[source].append(index)
        graph.signal.append(node.role == "input" or any(graph.signal[source] for source in inputs))
        graph.learned.append(
            node.role in ("parameter", "buffer") or any(graph.learned[source] for source in inputs)
        )
        if node.role == "output":
            graph.outputs.append(index)
    graph.writes = memory.writes
    return graph


def _lends_shape(info: OpInfo, argument: str) -> bool:
    if info.name in SHAPE_ONLY or (info.name, argument) in SHAPE_ARGUMENTS:
        return True
    return argument == "self" and (info.name in REFILLS or info.text == "aten.bernoulli.p")


def _part(node: RawNode, info: OpInfo, ref: int) -> tuple[int, int] | None:
    """The part of a split that an operation takes out, as the split and a number."""
    number = node.args[1] if info.name == "getitem" and len(node.args) > 1 else None
    return (ref, number) if isinstance(number, int) else None


class _Memory:
    """Follows which node last wrote to the memory behind each value."""

    def __init__(self, nodes: list[RawNode]) -> None:
        self._nodes = nodes
        self._root: list[int] = []
        self._piece: list[tuple[int, int] | None] = []  # (split node, which part) for parts of a split
        self.writes: dict[int, list[int]] = {}

    def own(self, index: int) -> None:
        """A value with memory of its own."""
        self._root.append(index)
        self._piece.append(None)

    def current(self, ref: int, piece: tuple[int, int] | None = None) -> int:
        """The node whose result is found under a reference, or in one of its parts."""
        piece = piece or self._piece[ref]
        for write in reversed(self.writes.get(self._root[ref], ())):
            if write <= ref:
                break
            other = self._piece[write]
            if not (piece and other and piece[0] == other[0] and piece[1] != other[1]):
                return write
        return ref

    def record(self, index: int, node: RawNode, info: OpInfo) -> tuple[Operand, ...]:
        """Reads a call's operands as they stand, then applies its writes."""
        operands: list[Operand] = []
        written: list[int] = []
        if info.is_norm:
            # Norms update their statistics behind the schema's back or not at all: the update is no data
            # flow of this pass.
            writes: tuple[str, ...] = ()
        else:
            writes = info.writes
        named = bind(node) if info.arguments else {"args": node.args, "kwargs": dict(node.kwargs)}
        for argument, value in named.items():
            for ref in iterate_refs(value):
                if argument in writes:
                    written.append(ref)
                    if argument in info.outs or (info.name in OVERWRITES and argument == "self"):
                        continue
                if _lends_shape(info, argument):
                    continue
                operands.append(Operand(argument, ref, self.current(ref, _part(node, info, ref))))
        for ref in written:
            root = self._root[ref]
            if elements(self._nodes[ref].shape) != elements(self._nodes[root].shape):
                operands.append(Operand("", root, self.current(root)))
        self._place(index, node, info, written)
        for ref in written:
            self.writes.setdefault(self._root[ref], []).append(index)
        return tuple(operands)

    def _place(self, index: int, node: RawNode, info: OpInfo, written: list[int]) -> None:
        source = None
        if info.name == "getitem":
            source = next(iterate_refs(node.args), None)
            # A tuple result that owns its memory (native_batch_norm, lstm) is not an alias of its parts.
            if source is not None and self._root[source] == source:
                source = None
        elif written:
            source = written[0]
        elif info.aliases and info.aliases[0] is not None:
            source = next(iterate_refs(bind(node).get(info.aliases[0])), None)
        if source is None:
            self.own(index)
            return
        self._root.append(self._root[source])
        piece = self._piece[source]
        if info.name == "getitem" and isinstance(node.args[1], int):
            piece = (source, node.args[1])
        self._piece.append(piece)
