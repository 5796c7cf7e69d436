"""Independent-component layers, batch norm and dropout in one, in front of weight layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from varshift import nn as layers
from varshift._arguments import between
from varshift._errors import VarshiftError
from varshift._sites import SiteId, Source
from varshift.fixes._addresses import Addresses
from varshift.fixes._class_draft import ClassDraft
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._edited_class import ClassEdit, with_edit
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._rewrite_functions import unscripted
from varshift.fixes._slots import Slot
from varshift.fixes._surgery import Refused, Surgery, like
from varshift.flow import Flow, Node, NormSite
from varshift.rules import Finding, Safety, Ways

CHILD = "independent_component"
_LAYERS = {
    2: layers.IndependentComponent1d,
    3: layers.IndependentComponent1d,
    4: layers.IndependentComponent2d,
    5: layers.IndependentComponent3d,
}
Norms = Literal["replace", "keep"]


@edit("insert-component")
@dataclass(frozen=True, slots=True)
class InsertComponent(ClassEdit):
    """Has a weight layer read its input through an independent-component layer, a new child of it.

    Attributes:
        path: Path of the weight layer.
        cls: Its class name.
        features: Number of channels of its input.
        rank: Number of dimensions of its input.
        drop_prob: DROP probability of the new layer.
        source: The line that calls the weight layer.
    """

    path: str
    cls: str
    features: int
    rank: int
    drop_prob: float
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Adds the child, and puts the module into a class whose `forward` runs it first."""
        module = surgery.module(self.path, self.cls)
        if next(module.children(), None) is not None or hasattr(module, CHILD):
            raise Refused(
                f"'{self.path}' ({self.cls}) has children: a new one might be taken for one of them."
            )
        cls = with_edit(module, self)
        layer = _LAYERS[self.rank](self.features, **like(module), drop_prob=self.drop_prob)
        layer.train(module.training)
        surgery.set_child(module, CHILD, layer)
        surgery.set_class(module, cls)
        return (Change(SiteId(self.path, "module"), "", repr(layer), "module", self.source),)

    def build(self, draft: ClassDraft) -> None:
        """Puts the child in front of `forward`."""
        draft.wrap_forward(_component_first)

    def without_place(self) -> InsertComponent:
        """The same for all modules of the class: the layer is the module's own."""
        return replace(self, path="", cls="", features=0, rank=0, drop_prob=0.0, source=None)


def _component_first(forward: Any) -> Any:
    @wraps(forward)
    def with_component(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, getattr(self, CHILD)(input), *args, **kwargs)

    return unscripted(with_component)


@edit("remove-norm")
@dataclass(frozen=True, slots=True)
class RemoveNorm(Edit):
    """Puts an identity in the place of a norm.

    Attributes:
        site: The norm.
        cls: Class name of its module.
        source: The line that calls it.
    """

    site: SiteId
    cls: str
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Swaps it, under all of its names."""
        module = surgery.module(self.site.module, self.cls)
        surgery.swap(module, nn.Identity())
        return (Change(self.site, repr(module), "", "module", self.source),)


@dataclass(frozen=True, slots=True)
class InsertComponentsOptions:
    """How the layers are inserted.

    Attributes:
        drop_prob: DROP probability of the new layers.
        norms: ``"replace"``: a batch norm between a weight layer and an activation goes where everything that
            reads it gets a layer of its own; ``"keep"``: all norms stay.
    """

    drop_prob: float = 0.05
    norms: str = "replace"

    def __post_init__(self) -> None:
        between("drop_prob", self.drop_prob, 0, 1)
        if self.norms not in get_args(Norms):
            raise VarshiftError(f"norms={self.norms!r} is unknown: expected {', '.join(get_args(Norms))}.")


@remedy
class InsertComponents(Remedy):
    """Puts an independent-component layer in front of each weight layer: ReLU, batch norm, dropout, weight.

    The first weight layers, which read the data, get none; nor do the projections of shortcuts and the
    weights of gates. The paper argues against a norm in front of the activation, and its layer brings a norm
    of its own: the norm that was there goes. New parameters appear under the names of the weight layers; all
    other names stay.

    Reference:
        G. Chen et al., "Rethinking the usage of batch normalization and dropout in the training of deep
        neural networks", arXiv 1905.05928.
    """

    code = "insert-components"
    answers = ()
    safety: ClassVar[Safety] = "unsafe"
    options = InsertComponentsOptions
    restates = True

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: InsertComponentsOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """A layer in front of every weight layer that qualifies, or of those that are named."""
        flow = patient.capture.train if patient.capture else None
        if flow is None:
            raise Refused(
                "layers are inserted into a captured network only, and there are no inputs to run it."
            )
        plan = _Insertion(flow, patient.network, {site.module for site in sites})
        inserted = plan.insertions(options.drop_prob)
        if not inserted:
            raise Refused(
                "no weight layer qualifies: a module of its own that runs once, reads channels in its second "
                "dimension, and comes after another weight layer."
            )
        norms = plan.replaced(set(inserted)) if options.norms == "replace" else ()
        return (*inserted.values(), *(RemoveNorm(norm.id, norm.cls, norm.source) for norm in norms))


class _Insertion:
    """Where layers go, and which norms they replace."""

    def __init__(self, flow: Flow, network: nn.Module, only: Collection[str]) -> None:
        self._flow = flow
        self._network = network
        self._only = only
        self._ways = Ways(flow)
        self._addresses = Addresses(flow, self._ways)

    def insertions(self, drop_prob: float) -> dict[int, InsertComponent]:
        """The edits by the node of the weight layer."""
        aside = self._in_gates() | self._in_shortcuts()
        edits = {}
        for weight in sorted(self._ways.weights - aside):
            edit = self._insertion(weight, drop_prob)
            if edit is not None and (not self._only or edit.path in self._only):
                edits[weight] = edit
        return edits

    def _insertion(self, weight: int, drop_prob: float) -> InsertComponent | None:
        flow, ways = self._flow, self._ways
        node, value = flow.nodes[weight], ways.signal_input(weight)
        shape = flow.nodes[value].shape if value is not None else None
        if value is None or shape is None or ways.upstream([value]).isdisjoint(ways.weights):
            return None
        if len(shape) != _rank(node.op):
            return None
        try:
            (address,) = self._addresses.find([Slot(value, (weight,))])
        except Refused:
            return None
        module = self._network.get_submodule(node.module)
        whole = address.path == node.module and address.side == "before" and not address.calls
        if not whole or next(module.children(), None) is not None:
            return None
        return InsertComponent(node.module, node.cls, shape[1], len(shape), drop_prob, node.source)

    def replaced(self, weights: Collection[int]) -> list[NormSite]:
        """The batch norms in front of an activation whose output only these weight layers read."""
        return [
            norm
            for norm in self._flow.norms
            if norm.tracked
            and norm.kind == "batch_norm"
            and len(norm.calls) == 1
            and self._is_plain(norm)
            and self._leads_to(norm.calls[0], weights)
        ]

    def _is_plain(self, norm: NormSite) -> bool:
        """Whether its module does nothing but normalise."""
        inside = [node.index for node in self._flow.nodes if f"{node.module}.".startswith(f"{norm.name}.")]
        return [index for index in inside if index in self._ways.signal] == list(norm.calls)

    def _leads_to(self, norm: int, weights: Collection[int]) -> bool:
        readers, nodes = self._ways.readers, self._flow.nodes
        stack, seen = list(readers[norm]), set(readers[norm])
        activated = bool(stack) and all(nodes[index].has("elementwise") for index in stack)
        value = self._ways.signal_input(norm)
        shared = value is not None and len(readers[value]) > 1
        if shared and any(_is_in_place(nodes[index]) for index in stack):
            return False  # without the norm the activation would overwrite what others read
        while stack:
            index = stack.pop()
            if index in weights:
                continue
            if nodes[index].kind not in ("activation", "view", "pool", "noise"):
                return False
            fresh = [reader for reader in readers[index] if reader not in seen]
            seen.update(fresh)
            stack += fresh
        return activated

    def _in_gates(self) -> set[int]:
        """Weights of a gate: what a signal is multiplied with, and is made from that signal itself."""
        ways = self._ways
        inside: set[int] = set()
        for node in self._flow.nodes:
            factors = [index for index in node.inputs if index in ways.signal]
            if node.kind != "product" or len(factors) != 2:
                continue
            for gated, gate in (factors, factors[::-1]):
                above = ways.upstream([gate])
                if gated in above:
                    inside |= above & ways.downstream(gated) & ways.weights
        return inside

    def _in_shortcuts(self) -> set[int]:
        """Weights of that summand of a sum that has fewer of them."""
        ways = self._ways
        inside: set[int] = set()
        for node in self._flow.nodes:
            summands = [index for index in node.inputs if index in ways.signal]
            if node.kind != "join" or len(summands) != 2:
                continue
            first, second = (ways.upstream([index]) for index in summands)
            common = first & second
            branches = sorted(((first - common) & ways.weights, (second - common) & ways.weights), key=len)
            if common and len(branches[0]) < len(branches[1]):
                inside |= branches[0]
        return inside


def _is_in_place(node: Node) -> bool:
    parts = node.overload.split(".")
    return len(parts) > 1 and parts[1].endswith("_")


def _rank(op: str) -> int:
    """Number of dimensions of an operation's input if its channels are the second one, else 0."""
    if op == "linear":
        return 2
    return next((int(digit) + 2 for digit in "123" if f"conv{digit}d" in op or f"transpose{digit}d" in op), 0)
