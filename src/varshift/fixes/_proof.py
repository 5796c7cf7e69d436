"""The proof of a change: two captures that differ in what was wished and in nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from varshift._sites import SiteId
from varshift.fixes._edit import NEW
from varshift.flow import Capture, Flow, Node, NoiseSite, NormSite

_LEAVES = ("input", "parameter", "buffer", "attribute", "constant", "output")
_SHOWN = 5  # differences of one sort that are named


@dataclass(frozen=True, slots=True)
class Proof:
    """How a captured network differs from what it was.

    Attributes:
        lost: Places that were to change, and are gone.
        added: Noise and norms that are new; all of them in modules that were to change.
        kept: Places that were to change, and are what they were.
        unexpected: Differences where nothing was to change, in plain sentences; empty where the change is
            exactly the one that was wished.
        limits: What could not be compared, in plain sentences.
    """

    lost: tuple[SiteId, ...] = ()
    added: tuple[SiteId, ...] = ()
    kept: tuple[SiteId, ...] = ()
    unexpected: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing changed that was not to change."""
        return not self.unexpected

    @property
    def reason(self) -> str:
        """The first difference where nothing was to change; empty where there is none."""
        return self.unexpected[0] if self.unexpected else ""


def prove(
    before: Capture, after: Capture, touched: Collection[SiteId], linked: Collection[SiteId] = ()
) -> Proof:
    """Compares two captures of a network, before and after edits.

    In both modes everything that was not to change has to be there, in the same order of execution: noise
    (module, kind, rate, mean, line, the lines of the calls that led to it), norms, and all other operations
    with what they read. Names are not compared by ordinals, because those count what is left. At the places
    that were to change, operations may come and go as long as what follows still reads the same signals.

    Args:
        before: The capture before the edits.
        after: The capture after them, of the same inputs.
        touched: The places that were to change, by their names before the edits.
        linked: Norms that may read one another's signals from now on, and weight layers that they may read.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift import SiteId
        >>> from varshift.fixes import prove
        >>> from varshift.flow import capture
        >>> net, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.1)), torch.randn(8, 4)
        >>> before = capture(net, x)
        >>> net[1] = nn.Identity()
        >>> prove(before, capture(net, x), [SiteId("1", "dropout")]).exact
        True
        >>> prove(before, capture(net, x), [SiteId("2", "dropout")]).unexpected[0]
        'In training, 1:dropout was to stay, and is gone or changed.'
    """
    results: list[Proof] = []
    unexpected: list[str] = []
    for mode, old, new in (("training", before.train, after.train), ("evaluation", before.eval, after.eval)):
        if old is not None and new is not None:
            results.append(_Comparison(mode, old, new, frozenset(touched), frozenset(linked)).result())
        elif old is not None:
            failures = " ".join(after.failures)
            unexpected.append(f"The network cannot be run in {mode} any more. {failures}".strip())

    def union(values: Callable[[Proof], Sequence[Any]]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value for result in results for value in values(result)))

    lost, kept = union(lambda result: result.lost), union(lambda result: result.kept)
    return Proof(
        lost,
        union(lambda result: result.added),
        tuple(site for site in kept if site not in lost),
        (*unexpected, *union(lambda result: result.unexpected)),
        union(lambda result: result.limits),
    )


class _Comparison:
    """One mode of two captures."""

    def __init__(
        self, mode: str, before: Flow, after: Flow, touched: frozenset[SiteId], linked: frozenset[SiteId]
    ) -> None:
        self._mode, self._before, self._after, self._touched = mode, before, after, touched
        self._linked = linked
        self._flows = before, after
        noises = {site.id: site for site in before.noises}
        self._noise_modules = {site.module for site in touched}
        for site in touched:
            if site in noises:
                self._noise_modules |= _modules_of(noises[site])
        self._modules = {node.module for node in before.nodes}
        # Layers that are skipped by chance are skipped with what they hold.
        self._chance = any(flow.by_chance or flow.decisions for flow in self._flows)
        self._both = self._modules & {node.module for node in after.nodes}
        norms = {site.id for site in before.norms}
        self._put = {site.module for site in touched if site.kind == NEW}
        changed = {site for site in touched if site.kind != NEW}
        self._free = {site.module for site in changed if site in norms or site not in noises}
        self._affairs: dict[Hashable, bool] = {}
        self._rates = {  # a single number that is held as a tensor where noise is made is a rate, no signal
            node.target
            for flow in self._flows
            for node in flow.nodes
            if node.kind in ("attribute", "buffer", "constant")
            and node.shape == ()
            and str(node.target).rpartition(".")[0] in self._noise_modules
        }

    def result(self) -> Proof:
        """What differs."""
        noise = self._sites(self._before.noises, self._after.noises, _noise_key)
        norms = self._sites(self._before.norms, self._after.norms, _norm_key)
        unexpected = [*noise.unexpected, *norms.unexpected]
        limits: tuple[str, ...] = ()
        if self._chance:
            limits = (
                f"In {self._mode}, random numbers decide what runs: operations were not compared, and noise "
                "and norms only where both captures ran them.",
            )
        else:
            unexpected += self._operations()
        return Proof(
            (*noise.lost, *norms.lost),
            (*noise.added, *norms.added),
            (*noise.kept, *norms.kept),
            tuple(unexpected),
            limits,
        )

    def _sites(
        self,
        before: Sequence[NoiseSite] | Sequence[NormSite],
        after: Sequence[NoiseSite] | Sequence[NormSite],
        key: Callable[[Any], Hashable],
    ) -> Proof:
        """Those that were to stay are a subsequence of what is there; what is left over is new."""
        stay = [site for site in before if site.id not in self._touched]
        place, rest, unexpected = 0, [], []
        keys = [key(site) for site in after]
        for site in stay:
            wanted = key(site)
            match = next((i for i in range(place, len(after)) if keys[i] == wanted), None)
            if match is None:
                if self._skipped(site):
                    continue
                unexpected.append(f"In {self._mode}, {site.id} was to stay, and is gone or changed.")
                continue
            rest += after[place:match]
            place = match + 1
        rest += after[place:]
        unexpected += [
            f"In {self._mode}, {site.id} is new, where nothing was to change."
            for site in rest
            if not self._may_change(site.id.module) and not self._skipped(site)
        ]
        old = {site.id: (key(site), _columns(site)) for site in before if site.id in self._touched}
        kept = [site.id for site in rest if old.get(site.id) == (key(site), _columns(site))]
        names = {site.id for site in rest}
        if self._mode == "training" and key is _noise_key:
            places = {site.id.module for site in rest if site.id not in kept}
            unexpected += [
                f"In {self._mode}, there is no noise at {_module(path)}, where it was to be put."
                for path in sorted(self._put - places)
            ]
        return Proof(
            tuple(site for site in old if site not in names),
            tuple(site.id for site in rest if site.id not in old),
            tuple(kept),
            tuple(unexpected[:_SHOWN]),
        )

    def _skipped(self, site: NoiseSite | NormSite) -> bool:
        """Whether one of the captures may have left a place out by chance."""
        return self._chance and site.id.module not in self._both

    def _may_change(self, module: str) -> bool:
        """Whether something was to change in a module, or in one that is new below such a module."""
        if module in self._noise_modules:
            return True
        if module in self._modules:
            return False
        return any(not path or module.startswith(f"{path}.") for path in self._noise_modules)

    def _operations(self) -> list[str]:
        """What differs in the operations, noise and norms that were to change apart."""
        before = [node for node in self._before.nodes if node.kind not in _LEAVES]
        after = [node for node in self._after.nodes if node.kind not in _LEAVES]
        pairs, odd = self._pairs(before, after)
        if odd:
            return odd[:_SHOWN]
        return self._wiring(pairs)[:_SHOWN]

    def _pairs(self, before: Sequence[Node], after: Sequence[Node]) -> tuple[dict[int, int], list[str]]:
        """Which operation before is which one after; what is odd about those without a partner."""
        pairs: dict[int, int] = {}
        odd: list[str] = []
        fixed = [[node for node in nodes if not self._may_change(node.module)] for nodes in (before, after)]
        for old, new in zip(*fixed, strict=False):
            if _node_key(old) != _node_key(new):
                return {}, [f"In {self._mode}, {_words(old)} became {_words(new)}."]
            pairs[old.index] = new.index
        if len(fixed[0]) != len(fixed[1]):
            longer = max(fixed, key=len)
            node = longer[min(map(len, fixed))]
            verb = "is gone" if longer is fixed[0] else "is new"
            return {}, [f"In {self._mode}, {_words(node)} {verb}, where nothing was to change."]
        mobile = [[node for node in nodes if self._may_change(node.module)] for nodes in (before, after)]
        # The product that is noise is never the product next to it; recurrent layers are what they were.
        keys = [
            [(_node_key(node), node.kind == "noise" and not _holds_weights(flow, node)) for node in nodes]
            for flow, nodes in zip(self._flows, mobile, strict=True)
        ]
        matcher = SequenceMatcher(None, *keys, autojunk=False)
        for start, other_start, size in matcher.get_matching_blocks():
            for offset in range(size):
                pairs[mobile[0][start + offset].index] = mobile[1][other_start + offset].index
        known = set(pairs.values())
        for flow, node, verb in (
            *((self._before, node, "is gone") for node in mobile[0] if node.index not in pairs),
            *((self._after, node, "is new") for node in mobile[1] if node.index not in known),
        ):
            if _has_weights(flow, node) and not self._is_free(node.module):
                odd.append(f"In {self._mode}, {_words(node)} {verb}.")
        return pairs, odd

    def _is_free(self, module: str) -> bool:
        """Whether more than noise was to change in a module."""
        return any(module == path or not path or module.startswith(f"{path}.") for path in self._free)

    def _wiring(self, pairs: dict[int, int]) -> list[str]:
        """Every operation that stayed reads the signals that it read, through what came and went."""
        noisy = {  # at a rate of zero their readers are seen to read what they read
            old
            for old, new in pairs.items()
            if "noise" in (self._before.nodes[old].kind, self._after.nodes[new].kind)
            and self._may_change(self._before.nodes[old].module)
        }
        masks = [self._masks(flow) for flow in self._flows]  # they may be drawn for nothing now
        noisy |= {old for old, new in pairs.items() if old in masks[0] or new in masks[1]}
        stays = {old: new for old, new in pairs.items() if old not in noisy}
        calls = {call for norm in self._before.norms if norm.id in self._linked for call in norm.calls}
        before = _origins(self._before, set(pairs) | calls, set(stays))
        shared = frozenset().union(*(self._read(before[call], {}) for call in calls))
        after = _origins(self._after, set(pairs.values()), set(stays.values()))
        new_names = {new: old for old, new in pairs.items()}
        odd = []
        for old, new in pairs.items():
            if not self._same(before[old], after[new], new_names, shared):
                node = self._before.nodes[old]
                odd.append(f"In {self._mode}, {_words(node)} reads other signals than before.")
        outputs = [[node.index for node in flow.nodes if node.kind == "output"] for flow in self._flows]
        for old, new in zip(*outputs, strict=False):
            if not self._same(before[old], after[new], new_names, shared):
                odd.append(f"In {self._mode}, the network returns other signals than before.")
        return odd

    def _masks(self, flow: Flow) -> set[int]:
        """Random values where noise was to change, up to where they meet the signal."""
        masks: set[int] = set()
        for node in flow.nodes:
            random = node.kind == "random" or not masks.isdisjoint(node.inputs)
            ends = node.kind in _LEAVES or node.kind == "noise" or _has_weights(flow, node)
            if random and not ends and self._may_change(node.module):
                masks.add(node.index)
        return masks

    def _same(
        self,
        before: frozenset[Hashable],
        after: frozenset[Hashable],
        names: dict[int, int],
        shared: frozenset[Hashable],
    ) -> bool:
        """Whether the same signals are read, apart from what linked norms may tell one another."""
        read, now = self._read(before, {}), self._read(after, names)
        layers = {site.module for site in self._linked}
        new = {signal for signal in now - read - shared if str(signal).rpartition(".")[0] not in layers}
        return read <= now and not new if self._linked else read == now

    def _read(self, origins: frozenset[Hashable], names: dict[int, int]) -> frozenset[Hashable]:
        """Signals by their names before; weights and rates of what may change are its own affair."""
        return frozenset(
            names.get(origin, origin) if isinstance(origin, int) else origin
            for origin in origins
            if isinstance(origin, int) or not self._is_own_affair(origin)
        )

    def _is_own_affair(self, origin: Hashable) -> bool:
        """Whether a tensor is a rate, or held by a module in which more than noise was to change."""
        if origin not in self._affairs:
            free = self._is_free(str(origin).rpartition(".")[0])
            self._affairs[origin] = free or origin in self._rates
        return self._affairs[origin]


def _origins(flow: Flow, wanted: set[int], stays: set[int]) -> dict[int, frozenset[Hashable]]:
    """For every operation that is wanted, the ones that it reads, through those that do not stay."""
    through: dict[int, frozenset[Hashable]] = {}  # what a value that is read counts as
    reads: dict[int, frozenset[Hashable]] = {}
    inputs = [node.index for node in flow.nodes if node.kind == "input"]
    for node in flow.nodes:
        sources = frozenset().union(*(through.get(index, frozenset()) for index in node.inputs))
        if node.kind == "output":
            reads[node.index] = sources
        elif node.kind in _LEAVES:
            through[node.index] = frozenset(
                [f"input {inputs.index(node.index)}"] if node.kind == "input" else _name(node)
            )
        else:
            through[node.index] = frozenset([node.index]) if node.index in stays else sources
            if node.index in wanted:
                reads[node.index] = sources
    return reads


def _has_weights(flow: Flow, node: Node) -> bool:
    """Whether an operation is a norm or has weights of its own; attention is a product of signals."""
    if node.kind == "norm":
        return True
    return node.kind == "weight" and any(flow.nodes[index].kind == "parameter" for index in node.inputs)


def _holds_weights(flow: Flow, node: Node) -> bool:
    """Whether an operation reads several parameters, as a recurrent layer with dropout inside does."""
    return sum(flow.nodes[index].kind == "parameter" for index in node.inputs) > 1


def _name(node: Node) -> Iterator[str]:
    if node.target is not None:
        yield node.target


def _modules_of(site: NoiseSite) -> set[str]:
    """The modules in which a noise is drawn and meets its signal."""
    met = [calls[-1].module for trace in site.traces if (calls := trace.call_frames())]
    return {*met, *(draw.name for draw in site.drawn)}


def _noise_key(site: NoiseSite) -> Hashable:
    rate = None if site.rate is None else round(site.rate, 5)
    mean = None if site.mean_factor is None else round(site.mean_factor, 4)
    lines = tuple((frame.module, frame.file, frame.line) for frame in site.calls)
    return site.name, site.kind, rate, mean, site.additive, site.drops, site.source, lines


def _columns(site: NoiseSite | NormSite) -> Hashable:
    """Where in its line a noise is made: what moved within a line is not what was there."""
    calls = site.calls if isinstance(site, NoiseSite) else ()
    return tuple((call.column, call.end_column) for call in calls)


def _norm_key(site: NormSite) -> Hashable:
    return site.id, site.cls, site.channels, len(site.calls), site.batch_statistics, site.tracked


def _node_key(node: Node) -> Hashable:
    return node.module, node.op, node.shape, node.source


def _module(path: str) -> str:
    return f"'{path}'" if path else "the network"


def _words(node: Node) -> str:
    place = _module(node.module)
    line = f" ({node.source})" if node.source is not None else ""
    return f"{node.op} in {place}{line}"
