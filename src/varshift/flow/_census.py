"""The norms of a network that no operator names: told by what training and evaluation do with states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from varshift.flow._graph import Graph
from varshift.flow._moment_fit import layouts
from varshift.flow._replay import NotReplayable
from varshift.flow._updates import StateReading, find_updates, state_nodes
from varshift.flow._uses import Roles, Use, UseTest, find_uses
from varshift.flow._vocabulary import VIEWS
from varshift.model import Form, NormStates, declared_states

_ARGUMENTS = ("running_mean", "running_var")
_Held = tuple[str, StateReading]  # a state by name, with a way to read it
_UNKNOWN_FORM = "it keeps its statistics in a form that is not known"
_SUMS = "it keeps sums over all that it ever saw, not averages"
_MEAN_ONLY = "it keeps a mean and no variance"


@dataclass(frozen=True, slots=True)
class HandNorm:
    """A norm written by hand.

    Attributes:
        name: Path of its module, with ``#2`` and so on for a second norm of the same module.
        states: Where it keeps its statistics.
        computes: Nodes of the train-mode graph through which new statistics follow from its input.
        input: The node of the train-mode graph whose moments they are; -1 where it is not known.
    """

    name: str
    states: NormStates
    computes: frozenset[int] = frozenset()
    input: int = -1

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of its states."""
        return tuple(name for name in (self.states.mean, self.states.spread) if name is not None)


def recognise(
    train: Graph | None,
    evaluation: Graph | None,
    model: nn.Module,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    replaced: Mapping[str, int],
) -> tuple[HandNorm, ...]:
    """The norms written by hand: states that training updates from moments and evaluation normalises with.

    Frozen norms, which update nothing, are recognised by dividing by the root of a state.

    Args:
        train: Graph of the train-mode pass, None where that mode could not be captured.
        evaluation: Graph of the eval-mode pass, None likewise.
        model: The model.
        names: Canonical module names.
        tensors: Parameters, buffers and attributes of the model by canonical name.
        replaced: For each state whose tensor the train-mode pass replaced, the node of the new one.
    """
    trainable = frozenset(
        name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    )
    declared = declared_states(model, names)
    handed = _handed_over(train)
    updates: dict[str, tuple[StateReading, ...]] = {}
    if train is not None:
        updates = find_updates(train, tensors, trainable | handed, replaced)
    norms = {states.mean: _declared(name, states, updates) for name, states in declared.items()}
    if evaluation is not None:
        for norm in _half_operators(evaluation, updates):
            norms.setdefault(norm.states.mean, norm)
        nodes = state_nodes(evaluation, trainable | handed | _handed_over(evaluation))
        test = UseTest(evaluation, tensors, nodes)
        for use in find_uses(evaluation, nodes):
            if any(norm.states.spread in use.states for norm in norms.values() if norm.states.spread):
                continue
            norm = _norm(evaluation, use, updates, test)
            if norm is not None:
                norms.setdefault(norm.states.mean or norm.states.spread, norm)
    elif train is not None:
        for norm in _trained(train, updates):
            norms.setdefault(norm.states.mean, norm)
    return _named(norms.values())


def _declared(name: str, states: NormStates, updates: Mapping[str, tuple[StateReading, ...]]) -> HandNorm:
    """A norm with the buffers of torch's own, and what its update says about it."""
    mean, spread = _pair(
        {target: updates.get(target, ()) for target in (states.mean, states.spread) if target}
    )
    if mean is None or spread is None:
        return HandNorm(name, states)
    described = _described(mean, spread)
    if (described.mean, described.spread) != (states.mean, states.spread):
        return HandNorm(name, states)
    return HandNorm(name, described, mean[1].between | spread[1].between, mean[1].input)


def _handed_over(graph: Graph | None) -> frozenset[str]:
    """Names of the states that norm operators are handed."""
    if graph is None:
        return frozenset()
    found: set[str] = set()
    for index, info in enumerate(graph.infos):
        if info.is_norm:
            stack = [o.node for o in graph.operands[index] if o.argument in _ARGUMENTS]
            while stack:
                node = stack.pop()
                target = graph.nodes[node].target
                if target is not None:
                    found.add(target)
                elif not graph.signal[node]:
                    stack.extend(graph.inputs[node])
    return frozenset(found)


def _norm(
    graph: Graph, use: Use, updates: Mapping[str, tuple[StateReading, ...]], test: UseTest
) -> HandNorm | None:
    """The norm that a use of states is, None for a use of another kind."""
    module = graph.nodes[use.first].module
    own_input = _from_outside(graph, use.input, module)
    readings = {name: updates[name] for name in use.states if updates.get(name)}
    if not readings:
        roles = test.fixed_norm(use) if not any(name in updates for name in use.states) else None
        if roles is None:
            return None
        states = NormStates(roles.mean, roles.spread, channels=roles.channels, layout=roles.layout)
        return HandNorm(module, replace(states, own_input=own_input))
    mean, spread = _pair(readings)
    if mean is None and spread is None:
        states = _sums(use, readings, test)
        return HandNorm(module, replace(states, own_input=own_input)) if states is not None else None
    norm = _tested(graph, use, mean, spread, test)
    if norm is None:
        return None
    states = replace(norm.states, own_input=own_input)
    owners = {name.rpartition(".")[0] for name in norm.targets}
    others = [name for name in updates if name not in norm.targets]
    unread = (name for name in others if not updates[name] and name.rpartition(".")[0] in owners)
    if any(name in use.states for name in others) or any(unread):
        states = replace(states, unsupported=_UNKNOWN_FORM)
    elif states.spread is None:
        states = replace(states, unsupported=_MEAN_ONLY)
    return replace(norm, name=module, states=states)


def _tested(
    graph: Graph, use: Use, mean: _Held | None, spread: _Held | None, test: UseTest
) -> HandNorm | None:
    """The norm with that mean and that variance, None where evaluation does not normalise with them."""
    held = spread or mean
    if held is None or (spread is None and held[1].rows > 1):
        return None
    reading = held[1]
    shape = graph.nodes[use.input].shape or ()
    states = _described(mean, spread)
    fitting = sorted(layouts(shape, reading.channels), key=lambda layout: layout != reading.layout)
    for layout in fitting:
        roles = Roles(states.mean, states.spread, states.form, reading.channels, layout)
        try:
            if not test.normalises(use, roles):
                continue
        except NotReplayable:
            if mean is None or spread is None:
                continue  # two moments of one signal that meet it again are a norm, a single one may be more
        computes = frozenset[int]().union(*(held[1].between for held in (mean, spread) if held))
        return HandNorm("", replace(states, layout=layout), computes, reading.input)
    return None


def _described(mean: _Held | None, spread: _Held | None) -> NormStates:
    """Where a norm with that mean and that variance keeps them."""
    reading = (spread or mean)[1]  # type: ignore[index]
    moment = reading.moment
    form: Form = moment.kind if moment is not None and moment.kind != "mean" else "variance"
    return NormStates(
        mean[0] if mean is not None else None,
        spread[0] if spread is not None else None,
        form,
        reading.channels,
        reading.rows,
        reading.layout,
        eps=moment.eps if moment is not None and form != "variance" else 0.0,
        momentum=reading.momentum,
        per_sample=moment is not None and moment.per_sample,
    )


def _trained(graph: Graph, updates: Mapping[str, tuple[StateReading, ...]]) -> Iterator[HandNorm]:
    """Norms of a network that is seen in training only: pairs of a mean and a variance of one signal."""
    left = {name: readings for name, readings in updates.items() if readings}
    while left:
        mean, spread = _pair(left)
        if mean is None or spread is None:
            return
        computes = mean[1].between | spread[1].between
        states = _described(mean, spread)
        module = graph.nodes[max(computes)].module
        own_input = _from_outside(graph, mean[1].input, module)
        yield HandNorm(module, replace(states, own_input=own_input), computes, mean[1].input)
        del left[mean[0]], left[spread[0]]


def _half_operators(graph: Graph, updates: Mapping[str, tuple[StateReading, ...]]) -> Iterator[HandNorm]:
    """Norms that hand their statistics to an operator in evaluation and do without one in training."""
    for index, info in enumerate(graph.infos):
        if not info.is_norm:
            continue
        named = {operand.argument: operand.node for operand in graph.operands[index]}
        targets = [graph.nodes[named[key]].target for key in _ARGUMENTS if key in named]
        readings = {name: updates[name] for name in targets if name is not None and updates.get(name)}
        mean, spread = _pair(readings)
        if mean is not None and spread is not None:
            computes = mean[1].between | spread[1].between
            module = graph.nodes[index].module
            yield HandNorm(module, _described(mean, spread), computes, mean[1].input)


def _pair(readings: Mapping[str, tuple[StateReading, ...]]) -> tuple[_Held | None, _Held | None]:
    """The mean and the variance of one signal among states, each with the way to read it."""
    means = [(n, r) for n, held in readings.items() for r in held if r.moment and r.moment.kind == "mean"]
    spreads = [(n, r) for n, held in readings.items() for r in held if r.moment and r.moment.kind != "mean"]
    for mean in means:
        for spread in spreads:
            if mean[1].input == spread[1].input and mean[0] != spread[0]:
                return mean, spread
    if spreads:
        return None, spreads[-1]
    return (means[0], None) if means else (None, None)


def _sums(use: Use, readings: Mapping[str, tuple[StateReading, ...]], test: UseTest) -> NormStates | None:
    """Where a norm keeps sums of its input and of its squares; None for a use of another kind."""
    for mean in readings:
        channels, layout = readings[mean][0].channels, readings[mean][0].layout
        for square in (*(name for name in readings if name != mean), None):
            roles = Roles(mean, square, "second_moment", channels, layout)
            try:
                if test.normalises(use, roles):
                    return NormStates(mean, square, channels=channels, layout=layout, unsupported=_SUMS)
            except NotReplayable:
                continue
    return None


def _from_outside(graph: Graph, index: int, module: str) -> bool:
    """Whether a value was computed outside a module, views and casts apart."""
    while True:
        node = graph.nodes[index]
        if node.role != "call" or not inside(node.module, module):
            return True
        if graph.infos[index].name not in VIEWS or len(graph.inputs[index]) != 1:
            return False
        index = graph.inputs[index][0]


def inside(module: str, path: str) -> bool:
    """Whether a module is the one at a path, or is inside it."""
    return not path or module == path or module.startswith(path + ".")


def _named(norms: Iterable[HandNorm]) -> tuple[HandNorm, ...]:
    """The norms, each with a name of its own."""
    counts: dict[str, int] = {}
    named: list[HandNorm] = []
    for norm in norms:
        counts[norm.name] = counts.get(norm.name, 0) + 1
        number = counts[norm.name]
        named.append(norm if number == 1 else replace(norm, name=f"{norm.name}#{number}"))
    return tuple(named)
