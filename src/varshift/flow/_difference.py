"""The first operation at which two passes of one network part: another operation, or another result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from varshift._sites import Source
from varshift.flow._ops import describe
from varshift.flow._raw import RawNode
from varshift.flow._recorder import Listen, record
from varshift.flow._source import SourceFinder
from varshift.flow._vocabulary import own_name
from varshift.model import Call, Forward, canonical_names, clone

# What the results of one pass may take while the other one runs; past it results are no longer compared.
_BYTES = 2**29

Distance = Callable[[Tensor, Tensor], "float | None"]


@dataclass(frozen=True, slots=True)
class Parting:
    """An operation at which two passes part.

    Attributes:
        module: Path of the module that calls it.
        cls: Class name of that module.
        op: Name of the operation.
        source: Line of the user's code, or None.
        only: 1 or 2 where only that pass runs the operation, 0 where both run it with different results.
    """

    module: str
    cls: str
    op: str
    source: Source | None
    only: int = 0


@dataclass(slots=True)
class _Pass:
    """The operations of one pass with copies of their results."""

    nodes: list[RawNode] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    results: list[list[Tensor]] = field(default_factory=list)
    bytes: int = 0

    def listen(self, node: RawNode, result: Any) -> None:
        """Notes an operation."""
        self.nodes.append(node)
        self.keys.append((str(node.op), node.module))
        kept = []
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and self.bytes < _BYTES:
                self.bytes += tensor.numel() * tensor.element_size()
                kept.append(tensor.detach().clone())
        self.results.append(kept)


def first_difference(
    network: nn.Module,
    first: Call,
    second: Call,
    prepare: Callable[[int], object],
    distance: Distance,
    limit: float,
    *,
    forward: Forward | None = None,
) -> Parting | None:
    """Runs a network on two calls and finds the first operation at which the passes part.

    Args:
        network: The network, which is run itself.
        first: One call.
        second: The other call.
        prepare: Called with 0 or 1 before either pass: sets state, modes and random numbers.
        distance: Distance of two results of one operation; None where they cannot be compared.
        limit: Distances up to here count as equal.
        forward: How the network is called with a batch.

    Returns:
        The operation; None where the passes do not part.

    Raises:
        Exception: Whatever the network raises.
    """
    passes = [
        _pass(network, call, partial(prepare, number), forward) for number, call in enumerate((first, second))
    ]
    finder = SourceFinder(dict(network.named_modules()))
    one, other = passes
    for place, key in enumerate(one.keys):
        if place == len(other.keys):
            return _parting(network, finder, one.nodes[place], 1)
        if key != other.keys[place]:
            extra = key not in other.keys[place:] or other.keys[place] in one.keys[place:]
            chosen = one if extra else other
            return _parting(network, finder, chosen.nodes[place], 1 if extra else 2)
        pairs = zip(one.results[place], other.results[place], strict=False)
        if any((distance(*pair) or 0.0) > limit for pair in pairs):
            return _parting(network, finder, one.nodes[place], 0)
    if len(other.keys) > len(one.keys):
        return _parting(network, finder, other.nodes[len(one.keys)], 2)
    return None


def _pass(network: nn.Module, call: Call, prepare: Callable[[], object], forward: Forward | None) -> _Pass:
    def run(listen: Listen, whole: bool) -> None:
        prepare()
        record(
            network,
            clone(call.batch),
            lambda model, batch: call.with_batch(batch).run(model, forward),
            canonical_names(network),
            tier="whole" if whole else "gradients",
            listen=listen,
        )

    try:
        heard = _Pass()
        run(heard.listen, True)
    except Exception:  # a forward that computes gradients wants autograd's own operations
        heard = _Pass()
        run(heard.listen, False)
    return heard


def _parting(network: nn.Module, finder: SourceFinder, node: RawNode, only: int) -> Parting:
    module = dict(network.named_modules()).get(node.module)
    return Parting(
        module=node.module,
        cls=type(module).__name__ if module is not None else "",
        op=own_name(describe(node).name),
        source=finder.operation(node.trace, node.module),
        only=only,
    )
