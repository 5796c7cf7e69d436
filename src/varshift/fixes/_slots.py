"""Places for noise in a captured network: where no norm sees it, or where pooling leaves its mean alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varshift.fixes._surgery import Refused
from varshift.flow import Flow, Node, NoiseSite
from varshift.rules import Branches, Ways


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for noise: a value, and the operations that are to read it through the noise.

    Attributes:
        value: The node that makes the value.
        readers: The nodes that read it.
    """

    value: int
    readers: tuple[int, ...]

    @property
    def edges(self) -> frozenset[tuple[int, int]]:
        """The value with each of its readers."""
        return frozenset((self.value, reader) for reader in self.readers)


class Slots:
    """Finds places for the noise of one flow."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.ways = Ways(flow)
        self._branches = Branches(flow, self.ways)
        self._before_norms = self.ways.upstream(
            index for call in self.ways.norms for index in flow.nodes[call].inputs
        )

    def head(self) -> tuple[Slot, ...]:
        """In front of the last weight of every output, where no norm is downstream of it.

        The last weight is the last one that every way from the network's last norms to an output passes; in
        a network without norms, every way from the input. Where there is none, as in a mean of several
        classifiers, they are the weights that no other weight follows, if every way passes one of them.
        Outputs without any, such as the features that a network returns alongside its scores, are left out.

        Raises:
            Refused: If no output has one.
        """
        slots = {}
        for output in dict.fromkeys(self.ways.outputs):
            for weight in self._last_weights(output):
                slots[weight] = self._in_front(weight)
        if not slots:
            raise Refused(
                "no weight layer follows the last norm of the network: noise after it would act on the "
                "outputs themselves. Lower the rate of the noise, or remove it."
            )
        return tuple(slots.values())

    def linear(self) -> tuple[Slot, ...]:
        """The head, where the outputs are linear in what the last weight reads.

        Raises:
            Refused: If they are not.
        """
        slots = self.head()
        for slot in slots:
            for index in sorted({*slot.readers, *self.ways.downstream(slot.readers[0])}):
                node = self.flow.nodes[index]
                if not self._is_linear(node):
                    raise Refused(
                        f"the outputs are not linear in any weight layer's input: {words(node)} follows the "
                        "last one. Average the outputs over the noise in evaluation instead: "
                        'varshift.mode(model, noise=True, norms="running").'
                    )
        return slots

    def branch_slot(self, site: NoiseSite) -> Slot | None:
        """After the last norm of the site's branch, in front of its last weight; None where it is there.

        Raises:
            Refused: If the site is in no residual branch, or its branch has no such place.
        """
        branch = self._branches.branch(site.node)
        if branch is None:
            raise Refused(f"{place_of(site)} is not in a residual branch with a norm of its own.")
        if branch.slot is None:
            raise Refused(
                f"the residual branch of {place_of(site)} has no weight that all of it passes after its last "
                "norm, so that it has no place where its norms do not see noise: move the noise after the "
                "last norm of the network (to='head'), or lower its rate."
            )
        slot = self._in_front(branch.slot)
        return None if branch.place == "slot" and self.is_close(site, slot) else slot

    def before_pooling(self, site: NoiseSite) -> Slot | None:
        """In front of the global average pooling that the noise follows.

        Raises:
            Refused: If no pooling precedes it directly, or if others read what was pooled.
        """
        flow, ways = self.flow, self.ways
        index = ways.signal_input(site.node)
        passed = site.node
        while index is not None:
            node = flow.nodes[index]
            others = [reader for reader in ways.readers[index] if reader != passed and reader in ways.signal]
            if others:
                raise Refused(
                    f"{words(flow.nodes[others[0]])} reads the pooled values as well, without the noise of "
                    f"{place_of(site)}: noise in front of the pooling would reach it, too."
                )
            if node.has("average_pool") or node.op == "mean":
                value = ways.signal_input(index)
                return None if value is None else Slot(value, (index,))
            if node.kind != "view":
                break
            passed, index = index, ways.signal_input(index)
        raise Refused(f"no global average pooling precedes {place_of(site)} directly.")

    def after_pooling(self, site: NoiseSite) -> tuple[Slot, ...]:
        """After each max pooling that reads the noise with no weight in between.

        Raises:
            Refused: If none does.
        """
        ways, flow = self.ways, self.flow
        slots: dict[int, Slot] = {}
        seen, stack = {site.node}, [site.node]
        while stack:
            for reader in ways.readers[stack.pop()]:
                node = flow.nodes[reader]
                if reader in seen:
                    continue
                seen.add(reader)
                if node.has("max_pool"):
                    result = self._first_result(reader)
                    if ways.readers[result]:
                        slots[result] = Slot(result, tuple(ways.readers[result]))
                elif node.kind in ("activation", "view", "concat", "noise"):
                    stack.append(reader)
        if not slots:
            raise Refused(f"no max pooling reads the noise of {place_of(site)}.")
        return tuple(slots.values())

    def branch(self, site: NoiseSite) -> Slot:
        """The end of the residual branch that a drop path bypasses, in front of the sum.

        Raises:
            Refused: If it cannot be told what the branch is.
        """
        join, values = self._around(site) if site.drops == "identity" else self._below(site)
        if join is None or len(values) != 1:
            raise Refused(
                f"the branch that {place_of(site)} is meant for cannot be told: write "
                "`x + drop_path(branch(x))` by hand."
            )
        return Slot(values[0], (join,))

    def is_close(self, site: NoiseSite, slot: Slot, *, linear: bool = False) -> bool:
        """Whether nothing but views, activations and averages lies between a site and a slot after it.

        Args:
            site: The site.
            slot: The slot.
            linear: Whether the activations have to hand a factor on unchanged.
        """
        index: int | None = slot.value
        while index is not None and index != site.node:
            node = self.flow.nodes[index]
            activation = node.has("homogeneous" if linear else "elementwise")
            if not (activation or node.has("view", "average_pool", "reduction") or node.kind == "noise"):
                return False
            index = self.ways.signal_input(index)
        return index == site.node

    def sees_norm(self, site: NoiseSite) -> bool:
        """Whether a norm with running statistics is downstream of a site."""
        return site.node in self._before_norms

    def _last_weights(self, output: int) -> tuple[int, ...]:
        ways = self.ways
        above = ways.upstream([output])
        norms = above & ways.norms
        sources = norms or {node.index for node in self.flow.nodes if node.kind == "input"} & above
        weights = sorted(above & ways.weights - self._before_norms, reverse=True)
        for weight in weights:
            if ways.passes([weight], sources, output, above):
                return (weight,)
        last = tuple(
            weight for weight in reversed(weights) if ways.downstream(weight).isdisjoint(ways.weights & above)
        )
        return last if ways.passes(last, sources, output, above) else ()

    def _in_front(self, weight: int) -> Slot:
        value = self.ways.signal_input(weight)
        return Slot(weight if value is None else value, (weight,))

    def _first_result(self, index: int) -> int:
        """Of an operation with several results, the first of them."""
        parts = [reader for reader in self.ways.readers[index] if self.flow.nodes[reader].op == "getitem"]
        return next((part for part in parts if self.flow.nodes[part].args[1:2] == (0,)), index)

    def _is_linear(self, node: Node) -> bool:
        signals = [index for index in node.inputs if index in self.ways.signal]
        if node.kind in ("output", "view", "join", "concat", "noise") or node.has(
            "average_pool", "reduction"
        ):
            return True
        if len(signals) != 1:
            return False
        if node.has("scale"):
            return not node.has("quotient") or self.ways.signal_input(node) == node.inputs[0]
        return node.has("term", "resampling") or node.index in self.ways.weights

    def _around(self, site: NoiseSite) -> tuple[int | None, Sequence[int]]:
        """The sum in which a gated shortcut meets its branch, and what the branch adds to it."""
        ways = self.ways
        before = ways.upstream([site.node])
        meetings = ways.meetings(site.node, ways.downstream(site.node))
        join, free = next(meetings, (None, ()))
        return join, [index for index in free if ways.upstream([index]) & before]

    def _below(self, site: NoiseSite) -> tuple[int | None, Sequence[int]]:
        """The sum of a shortcut and a branch that is gated as a whole, and what the branch adds to it."""
        ways = self.ways
        index = ways.signal_input(site.node)
        while index is not None and self.flow.nodes[index].kind in ("view", "activation"):
            index = ways.signal_input(index)
        if index is None or self.flow.nodes[index].kind != "join":
            return None, ()
        summands = [source for source in self.flow.nodes[index].inputs if source in ways.signal]
        weights = {source: len(ways.upstream([source]) & ways.weights) for source in summands}
        most = max(weights.values(), default=0)
        return index, [source for source in summands if weights[source] == most] if len(summands) == 2 else ()


def place_of(site: NoiseSite) -> str:
    """A noise site in words, with its line."""
    return f"'{site.id}'" + (f" ({site.source})" if site.source is not None else "")


def words(node: Node) -> str:
    """An operation in words, with its line."""
    owner = f" in '{node.module}'" if node.module else ""
    return f"{node.op}{owner}" + (f" ({node.source})" if node.source is not None else "")
