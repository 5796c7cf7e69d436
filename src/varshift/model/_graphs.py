"""Batches of graphs, by what they have in common in all libraries: how many they are, and the first few."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varshift.model._nest import attributes, first_tensor, tensors

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
_COUNTS = ("num_graphs", "batch_size")
_LINKS = ("edge_index", "adj_t", "ptr")


def is_graph(value: Any) -> bool:
    """Whether an object or mapping is a graph or several: it says so, or has edges or an index of graphs."""
    if isinstance(value, (Tensor, tuple, list, str, bytes)) or value is None:
        return False
    if not isinstance(value, Mapping) and not attributes(value):
        return False
    if any(isinstance(_field(value, name), Tensor) for name in _LINKS):
        return True
    return _graph_index(value) is not None or (not isinstance(value, Mapping) and _count(value) is not None)


def declared_size(graph: Any, targets: Any = None) -> int:
    """Number of samples in a graph or a batch of graphs.

    Its own count; else the number of targets, since of one large graph the nodes are the samples; else the
    number of graphs in its index; else its nodes.

    Args:
        graph: The graph.
        targets: Targets that come along with it.
    """
    declared = _count(graph)
    if declared is not None:
        return declared
    for target in (targets, *(_field(graph, name) for name in TARGET_NAMES)):
        if isinstance(target, Tensor) and target.dim():
            return len(target)
    index = _graph_index(graph)
    if index is not None:
        return int(index.max()) + 1
    nodes = _field(graph, "x")
    nodes = nodes if isinstance(nodes, Tensor) else first_tensor(graph)
    return 1 if nodes is None or nodes.dim() == 0 else len(nodes)


def take_graphs(graph: Any, count: int, size: int) -> Any:
    """The first graphs of a batch, None where it is not certain what belongs to which graph.

    A batch that can be taken apart and put together by its own class is cut that way. Any other is cut by its
    sorted index of graphs: nodes and edges go with their graph, and every tensor must be one or the other or
    have one entry per graph.
    """
    apart = getattr(graph, "to_data_list", None)
    # The class that defines it: a batch may be of a class that was made for it.
    maker: Any = next((cls for cls in type(graph).__mro__ if "from_data_list" in vars(cls)), None)
    if callable(apart) and maker is not None:
        with contextlib.suppress(Exception):  # whatever a library finds wrong with a batch that was changed
            single: Any = apart()
            return maker.from_data_list(single[:count]) if len(single) == size else None
        return None
    index = _graph_index(graph)
    if index is None or size != int(index.max()) + 1:
        return None
    cut = _Cut(graph, index, count, size)
    return cut.result()


class _Cut:
    """Cuts one batch of graphs that is a mapping or an object with tensors as its attributes."""

    def __init__(self, graph: Any, index: Tensor, count: int, size: int) -> None:
        self._graph, self._index, self._count, self._size = graph, index, count, size
        self._nodes = int((index < count).sum())
        edges = _field(graph, "edge_index")
        links = isinstance(edges, Tensor) and edges.dim() == 2 and len(edges) == 2
        self._edges = (edges < self._nodes).all(0) if isinstance(edges, Tensor) and links else None

    def result(self) -> Any:
        """The graphs that are kept, None where some tensor has no clear place."""
        held = dict(self._graph) if isinstance(self._graph, Mapping) else attributes(self._graph)
        entries: dict[str, Any] = {}
        for name, value in held.items():
            cut = self._entry(name, value)
            if cut is None and value is not None:
                return None
            entries[name] = cut
        if isinstance(self._graph, Mapping):
            return entries
        if len(entries) != len(getattr(self._graph, "__dict__", {})):
            return None
        result = object.__new__(type(self._graph))
        result.__dict__.update(entries)
        return result

    def _entry(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            if any(True for _ in tensors(value)):
                return None
            counts = {"num_graphs": self._count, "batch_size": self._count, "num_nodes": self._nodes}
            return counts.get(name, value)
        if value.layout is not torch.strided:
            return None
        if value.dim() == 0:
            return value
        edges, nodes = self._edges, len(self._index)
        if edges is not None and name == "edge_index":
            return value[:, edges]
        if edges is not None and len(value) == len(edges) and ("edge" in name or len(edges) == nodes):
            return value[edges] if "edge" in name else None
        if name == "ptr" and len(value) == self._size + 1:
            return value[: self._count + 1]
        if len(value) == nodes and "index" not in name:
            return value[: self._nodes]
        return value[: self._count] if len(value) == self._size and "index" not in name else None


def _graph_index(value: Any) -> Tensor | None:
    """The sorted index that says to which graph each node belongs."""
    index = _field(value, "batch")
    if not isinstance(index, Tensor) or index.dim() != 1 or index.is_floating_point() or len(index) == 0:
        return None
    return index if int(index[0]) == 0 and bool((index[1:] >= index[:-1]).all()) else None


def _count(value: Any) -> int | None:
    for name in _COUNTS:
        number = _field(value, name)
        if isinstance(number, (tuple, list)) and number:  # dictionaries of tensors give all their dimensions
            number = number[0]
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None


def _field(value: Any, name: str) -> Any:
    """An entry of a mapping or an attribute of an object, None without one."""
    if isinstance(value, Mapping) and name in value:
        return value[name]
    try:
        return None if type(value) is dict else getattr(value, name, None)
    except Exception:  # a property of the user's own
        return None
