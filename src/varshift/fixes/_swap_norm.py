"""The cure that puts another norm in the place of a norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from varshift import nn as layers
from varshift._errors import VarshiftError
from varshift._sites import SiteId, Source
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._kalman_chain import plan_kalman
from varshift.fixes._norm_followers import followers, with_followers
from varshift.fixes._norm_forms import NormForm, read_followed, read_norm
from varshift.fixes._norm_layers import LAYERS, LayerSettings, NormKind, group_count
from varshift.fixes._norm_places import NormPlace, norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._rectifiers import rectifier_after
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery, refused
from varshift.model import NormStates, find_norms
from varshift.rules import Finding, Safety


@edit("swap-norm")
@dataclass(frozen=True, slots=True)
class SwapNorm(Edit):
    """Puts a layer in the place of a norm, on all paths, with what it keeps of the norm.

    Attributes:
        site: The norm.
        path: Path of its module.
        cls: Class name of its module.
        to: The kind of layer.
        settings: What else was chosen.
        shape: Shape of the norm's input with any number of samples; None where it is not known.
        rectifier: Path of the ReLU that goes, for a layer with a threshold of its own.
        children: Names of the children that the norm's module passes its output through.
        states: Where a hand-written norm keeps its statistics, by names within its module.
        source: The line that calls the norm.
    """

    site: SiteId
    path: str
    cls: str
    to: str
    settings: LayerSettings = field(default_factory=LayerSettings)
    shape: tuple[int, ...] | None = None
    rectifier: str | None = None
    children: tuple[str, ...] = ()
    states: NormStates | None = None
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Swaps the norm, and the ReLU after it for an identity."""
        module = surgery.module(self.path, self.cls)
        place = self._place(module)
        form = read_followed(place, self.children) if self.children else read_norm(place)
        if form is None:
            raise Refused(f"module '{self.path}' ({self.cls}) is no plain norm here, as it was in the plan.")
        layer = with_followers(_built(form, self.to, self.settings, str(self.site)), module, self.children)
        rectifier = surgery.module(self.rectifier, "ReLU") if self.rectifier is not None else None
        changes = [Change(self.site, repr(module), repr(layer), "module", self.source)]
        surgery.swap(module, layer, {"weight": "weight", "bias": "bias"})
        if rectifier is not None and self.rectifier is not None:
            identity = nn.Identity()
            surgery.swap(rectifier, identity)
            site = SiteId(self.rectifier, "relu")
            changes.append(Change(site, repr(rectifier), repr(identity), "module"))
        return tuple(changes)

    def _place(self, module: nn.Module) -> NormPlace:
        """The norm, on a network that is not captured."""
        norms = find_norms(module, {"": self.states} if self.states is not None else None)
        norm = next((one for one in norms if one.module is module), None)
        return NormPlace(self.path, module, norm, None, self.shape)


def _built(form: NormForm, to: str, settings: LayerSettings, site: str) -> nn.Module:
    try:
        return LAYERS[to].build(form, settings)
    except Refused as error:
        raise Refused(f"the norm {site} cannot become '{to}': {error}") from None


def plan_swap(patient: Patient, place: NormPlace, to: str, settings: LayerSettings) -> SwapNorm:
    """The edit that puts a layer in the place of a norm.

    Args:
        patient: The network, with its capture.
        place: The norm.
        to: The kind of layer, one of `LAYERS`.
        settings: What else is chosen; the positions are filled in, and a threshold needs a ReLU whose place
            it takes.

    Raises:
        Refused: If the module is more than a norm, or the layer cannot be built for it.
    """
    form, children = read_norm(place), ()
    if form is None and place.path:
        children = followers(patient, place) or ()
        form = read_followed(place, children) if children else None
    if form is None:
        raise Refused(
            f"{place.words} is no module that only normalises, so that no other can replace it: in its "
            f"forward, write {_call(to, place)} where the running statistics are used."
        )
    thresholded = to == "filter_response_norm" and settings.tlu
    rectifier = rectifier_after(patient, place) if thresholded else None
    settings = replace(settings, positions=place.positions, tlu=rectifier is not None)
    _built(form, to, settings, str(place.id))
    states = own_states(place) if place.norm is not None and place.norm.kind == "custom" else None
    return SwapNorm(
        place.id, place.path, place.cls, to, settings, place.shape, rectifier, children, states, place.source
    )


def own_states(place: NormPlace) -> NormStates | None:
    """Where a norm keeps its statistics, by names within its module; None where they are elsewhere."""
    if place.norm is None:
        return None
    prefix = f"{place.norm.name}." if place.norm.name else ""
    states = place.norm.states
    names = [name for name in (states.mean, states.spread) if name is not None]
    if not all(name.startswith(prefix) for name in names):
        return None
    mean, spread = (None if name is None else name[len(prefix) :] for name in (states.mean, states.spread))
    return replace(states, mean=mean, spread=spread)


def _call(to: str, place: NormPlace) -> str:
    channels = place.channels
    if to in ("group_norm", "layer_norm"):
        groups = group_count(channels, positions=place.positions) if to == "group_norm" else 1
        return f"F.group_norm(x, {groups}, weight, bias)"
    return {
        "instance_norm": "F.instance_norm(x, weight=weight, bias=bias)",
        "filter_response_norm": "varshift.functional.filter_response_norm(x, weight, bias)",
        "batch_renorm": "varshift.functional.batch_renorm(x, mean, var, weight, bias, self.training)",
        "frozen": "F.batch_norm(x, mean, var, weight, bias, training=False)",
        "sync": f"torch.nn.SyncBatchNorm({channels})(x)",
    }[to]


@dataclass(frozen=True, slots=True)
class SwapNormOptions:
    """Options of the cure.

    Attributes:
        to: ``"group_norm"``, ``"layer_norm"`` (one group), ``"instance_norm"``, ``"filter_response_norm"``,
            ``"batch_renorm"``, ``"frozen"``, ``"sync"`` or ``"kalman"`` (where norms follow one another).
        groups: For ``"group_norm"``: the most groups. The number is the largest divisor of the channels that
            leaves two channels and 16 values of a sample in a group.
        tlu: For ``"filter_response_norm"``: whether a learned threshold takes the place of a ReLU module that
            sees nothing but this norm. Elsewhere the ReLU stays, and the norm has no threshold.
        trainable: For ``"frozen"``: whether the affine parameters go on learning.
        scale: For ``"batch_renorm"``: the largest factor by which a batch is corrected.
        shift: For ``"batch_renorm"``: the largest shift, in standard deviations.
        prediction_weight: For ``"kalman"``: weight of the prediction. Published are 0.9 for two samples on a
            device and 0.05 for 128.

    Raises:
        VarshiftError: If a value is out of range.
    """

    to: NormKind | Literal["kalman"] = "group_norm"
    groups: int = 32
    tlu: bool = True
    trainable: bool = True
    scale: float = 3.0
    shift: float = 5.0
    prediction_weight: float = 0.9

    def __post_init__(self) -> None:
        if self.to not in (kinds := [*LAYERS, "kalman"]):
            raise VarshiftError(f"to={self.to!r} is no kind of norm: the kinds are {', '.join(kinds)}.")
        if not 0 <= self.prediction_weight <= 1:
            raise VarshiftError(f"prediction_weight={self.prediction_weight!r} must be between 0 and 1.")
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1:
            raise VarshiftError(f"groups={self.groups!r} must be a whole number of at least 1.")
        if not self.scale >= 1 or not self.shift >= 0:
            raise VarshiftError(
                f"scale={self.scale!r}, shift={self.shift!r}: the scale must be at least 1, the shift 0."
            )


@remedy
class SwapNormRemedy(Remedy):
    """Puts another norm in the place of a norm.

    Weights and biases are carried over as they are, running statistics where the new layer has any. Frozen,
    synchronised and renormalising layers evaluate as the batch norm did; the others compute something else,
    and the network has to be trained again.
    """

    code = "swap-norm"
    answers = ("VS302", "VS303", "VS304", "VS305")
    safety = "unsafe"
    options = SwapNormOptions
    restates = True

    def safety_of(self, options: SwapNormOptions) -> Safety:
        """By the kind of layer."""
        return "safe" if options.to == "kalman" else LAYERS[options.to].safety

    def restates_with(self, options: SwapNormOptions) -> bool:
        """By the kind of layer."""
        return self.safety_of(options) == "unsafe"

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: SwapNormOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """One edit for each norm; where no site is named, for those that look at the batch."""
        places = norm_places(patient, sites)
        if not sites:
            places = [place for place in places if not place.per_sample]
        if options.to == "kalman":
            return (plan_kalman(patient, places, options.prediction_weight),)
        settings = LayerSettings(
            options.groups, None, options.tlu, options.trainable, options.scale, options.shift
        )
        edits: list[Edit] = []
        reasons: list[Refused] = []
        for place in places:
            if already(place, options.to):
                continue
            try:
                edits.append(plan_swap(patient, place, options.to, settings))
            except Refused as error:
                reasons.append(error)
        if reasons and (sites or not edits):
            raise refused(reasons)
        if not edits:
            raise Refused(f"every norm is what to='{options.to}' would make of it.")
        patient.notes.extend(map(str, reasons))
        return edits


def already(place: NormPlace, to: str) -> bool:
    """Whether a norm is of a kind already."""
    if to == "frozen":
        return isinstance(place.module, layers.FrozenBatchNorm)
    if to == "sync":
        return isinstance(place.module, nn.SyncBatchNorm)
    renorm = (layers.BatchRenorm1d, layers.BatchRenorm2d, layers.BatchRenorm3d)
    return to == "batch_renorm" and isinstance(place.module, renorm)
