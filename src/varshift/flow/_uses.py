"""Where states meet a signal in evaluation, and whether the signal is normalised there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from varshift.flow._graph import Graph
from varshift.flow._moment_fit import layouts, made_up, per_channel
from varshift.flow._replay import NotReplayable, Replay
from varshift.flow._vocabulary import PRODUCTS, SUMS, VIEWS
from varshift.model import Form, Layout, stored

# Operations that keep a signal an affine function of itself, with states or constants for the other operands.
AFFINE = SUMS | PRODUCTS | VIEWS | {"neg", "negative"}
_TOLERANCE = 2e-2


@dataclass(slots=True)
class Use:
    """A chain of operations in which states meet one signal.

    Attributes:
        input: The node of the signal.
        first: The node where the first state meets it.
        last: The node where the last one does.
        states: Names of the states.
    """

    input: int
    first: int
    last: int
    states: dict[str, None] = field(default_factory=dict)


def find_uses(graph: Graph, states: Mapping[str, int]) -> list[Use]:
    """Where states of the model meet signals, in order of execution.

    Args:
        graph: The graph of the eval-mode pass.
        states: Nodes of the states by name.
    """
    held: dict[int, dict[str, None]] = {node: {name: None} for name, node in states.items()}
    chain: dict[int, Use] = {}
    uses: list[Use] = []
    for index, node in enumerate(graph.nodes):
        if node.role != "call" or graph.infos[index].is_norm:
            continue
        kept: dict[str, None] = {}
        signals: list[int] = []
        for source in graph.inputs[index]:
            if source in held:
                kept |= held[source]
            elif graph.signal[source] and is_float(graph, source):
                signals.append(source)
        if not signals:
            if kept:
                held[index] = kept
            continue
        use = next((chain[source] for source in signals if source in chain), None)
        if graph.infos[index].name not in AFFINE or len(signals) > 1:
            continue
        if kept and (use is None or graph.nodes[use.first].module != node.module):
            use = Use(signals[0], index, index)
            uses.append(use)
        if use is None:
            continue
        if kept:
            use.last = index
            use.states |= kept
        chain[index] = use
    # What no output of the network depends on, such as a distance that only a loss reads, normalises nothing.
    deciding = set(graph.outputs)
    if uses:
        for index in range(len(graph.nodes) - 1, -1, -1):
            if index in deciding:
                deciding.update(graph.inputs[index])
    return [use for use in uses if use.last in deciding]


def is_float(graph: Graph, index: int) -> bool:
    """Whether a node's result may be a signal: numbers of other types count, choose or mask."""
    dtype = graph.nodes[index].dtype
    return dtype is None or dtype.is_floating_point


@dataclass(frozen=True, slots=True)
class Roles:
    """Which of the states of a use are its mean and its variance.

    Attributes:
        mean: Name of the mean, None without one.
        spread: Name of the state that holds the variance in some form, None without one.
        form: That form.
        channels: Number of channels.
        layout: Where they are in the signal.
    """

    mean: str | None
    spread: str | None
    form: Form
    channels: int
    layout: Layout


class UseTest:
    """Tests what states do to a signal by changing both.

    A norm's result is an affine function of its input; it stays the same where the input and the mean move
    alike, and its slope halves where the variance is four times as large.

    Args:
        graph: The graph of the eval-mode pass.
        tensors: The model's tensors by name.
        states: Nodes of all states by name.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], states: Mapping[str, int]) -> None:
        self._graph, self._states = graph, states
        self._replay = Replay(graph, tensors)
        self._indices: dict[int, Tensor] = {}
        for index, node in enumerate(graph.nodes):
            if node.role == "input" and node.shape is not None and not is_float(graph, index):
                self._indices[index] = torch.zeros(node.shape, dtype=node.dtype)

    def fixed_norm(self, use: Use) -> Roles | None:
        """The roles of states that nothing updates: of a frozen norm, whose variance is seen as such.

        A fixed scaling of inputs divides by a deviation, not by the root of a variance, and is no norm.
        """
        graph = self._graph
        sizes = {name: graph.elements(self._states[name]) for name in use.states}
        shape = graph.nodes[use.input].shape or ()
        for channels in dict.fromkeys(sizes.values()):
            names = [name for name, size in sizes.items() if size == channels]
            if len(names) < 2 or channels < 2:
                continue
            for layout in layouts(shape, channels):
                for spread in names:
                    roles = Roles(None, spread, "variance", channels, layout)
                    if not self.normalises(use, roles):
                        continue
                    for mean in names:
                        whole = Roles(mean, spread, "variance", channels, layout)
                        if mean != spread and self.normalises(use, whole):
                            return whole
        return None

    def normalises(self, use: Use, roles: Roles) -> bool:
        """Whether the signal is normalised by states in these roles.

        Raises:
            NotReplayable: If the chain of operations cannot be run again.
        """
        node = self._graph.nodes[use.input]
        if node.shape is None or node.dtype is None:
            return False
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            return made_up(node.shape or (), roles.channels, roles.layout, generator)

        x, step = draw(), draw()
        mean = torch.rand(roles.channels, generator=generator) * 4 - 2
        variance = 50 + 100 * torch.rand(roles.channels, generator=generator)
        before = self._result(use, roles, x, mean, variance)
        slope = self._result(use, roles, x + step, mean, variance) - before
        again = self._result(use, roles, x + 2 * step, mean, variance) - before
        if not _alike(again, 2 * slope) or not bool((slope != 0).any()):
            return False
        if roles.spread is not None:
            wide = self._result(use, roles, x, mean, 4 * variance)
            wide = self._result(use, roles, x + step, mean, 4 * variance) - wide
            if not _alike(2 * wide, slope):
                return False
        if roles.mean is not None:
            move = torch.rand(roles.channels, generator=generator) * 4 + 2
            spread = per_channel(move, x.shape, roles.layout)
            moved = self._result(use, roles, x + spread, mean, variance) - before
            both = self._result(use, roles, x + spread, mean + move, variance) - before
            if not bool((both.abs() <= _TOLERANCE * moved.abs() + 1e-6).all()) or not bool(
                (moved != 0).any()
            ):
                return False
        return True

    def _result(self, use: Use, roles: Roles, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        fixed = dict(self._indices)
        for name in use.states:
            node = self._graph.nodes[self._states[name]]
            fixed[self._states[name]] = torch.ones(node.shape or (), dtype=node.dtype)
        mean = mean if roles.mean is not None else torch.zeros_like(mean)
        values = {} if roles.mean is None else {roles.mean: mean}
        if roles.spread is not None:
            values[roles.spread] = stored(roles.form, mean, variance)
        for name, value in values.items():
            like = fixed[self._states[name]]
            rows = like.numel() // roles.channels
            fixed[self._states[name]] = value.repeat(rows).reshape(like.shape).to(like.dtype)
        node = self._graph.nodes[use.input]
        fixed[use.input] = x.to(node.dtype)
        result = self._replay.values([use.last], fixed)[use.last]
        if not bool(torch.isfinite(result).all()):
            raise NotReplayable("its result is not finite")
        return result.detach().double()


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= _TOLERANCE * other.abs() + 1e-4 * other.abs().max()).all())
