"""Batch Kalman norms that take a signal and return a signal, and hand their states on among themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varshift import nn as layers
from varshift._sites import SiteId, Source
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._norm_forms import read_norm
from varshift.fixes._norm_places import NormPlace
from varshift.fixes._patient import Patient
from varshift.fixes._surgery import Refused, Surgery
from varshift.flow import Flow, Node
from varshift.functional import KalmanState

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class _Chained:
    """What the chained norms share."""

    _link: tuple[nn.Module | None, nn.Module | None]
    _state: KalmanState | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, detach_state=True, **kwargs)  # type: ignore[call-arg]
        self._link, self._state = (None, None), None

    def link(self, before: nn.Module | None, layer: nn.Module | None) -> None:
        """Sets the norm whose state predicts this one's, and the weight layer between the two."""
        # In a tuple: they are modules of the network already, and no children of this norm.
        self._link = (before, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises, with what the norm before saw in this forward pass."""
        before, layer = self._link
        state = before._state if isinstance(before, _Chained) and self.training else None  # type: ignore[attr-defined]
        y, own = super().forward(x, state, layer)  # type: ignore[misc]
        self._state = own if self.training else None  # type: ignore[attr-defined]
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_state": None}


class ChainedKalmanNorm1d(_Chained, layers.BatchKalmanNorm1d):
    """Batch Kalman norm of features or sequences that takes the place of a batch norm.

    See `varshift.nn.BatchKalmanNorm1d`. The state of the norm before is read from that norm, without
    gradients: it is that of the same forward pass.
    """


class ChainedKalmanNorm2d(_Chained, layers.BatchKalmanNorm2d):
    """Batch Kalman norm of images that takes the place of a batch norm; see `ChainedKalmanNorm1d`."""


@dataclass(frozen=True, slots=True)
class KalmanLink:
    """One norm of a chain.

    Attributes:
        site: The norm.
        path: Path of its module.
        cls: Class name of its module.
        dims: 1 for features and sequences, 2 for images.
        before: Path of the norm whose state predicts this one's; None at the head of a chain.
        layer: Path of the weight layer between the two.
        negative_slope: Slope of the activation's negative side in front of that layer; 1 for none.
        source: The line that calls it.
    """

    site: SiteId
    path: str
    cls: str
    dims: int
    before: str | None = None
    layer: str | None = None
    negative_slope: float = 0.0
    source: Source | None = None


@edit("chain-kalman-norms")
@dataclass(frozen=True, slots=True)
class ChainKalmanNorms(Edit):
    """Puts batch Kalman norms in the place of batch norms, chained as the network runs them.

    Attributes:
        links: The norms, each after the one before it.
        weight: Weight of the prediction against the observation.
    """

    links: tuple[KalmanLink, ...]
    weight: float

    @property
    def linked(self) -> tuple[SiteId, ...]:
        """The norms, and the weight layers between them."""
        between = (SiteId(one.layer, "weight") for one in self.links if one.layer is not None)
        return (*(one.site for one in self.links), *between)

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Swaps all of them, with their parameters and statistics, and then links them."""
        changes, norms = [], []
        for one in self.links:
            module = surgery.module(one.path, one.cls)
            norm = _kalman_norm(module, one, self.weight)
            changes.append(Change(one.site, repr(module), repr(norm), "module", one.source))
            norms.append((module, norm))
        for module, norm in norms:
            surgery.swap(module, norm)
        for one, (_, norm) in zip(self.links, norms, strict=True):
            if one.before is not None and one.layer is not None:
                norm.link(surgery.module(one.before), surgery.module(one.layer))
        return tuple(changes)


def _kalman_norm(module: nn.Module, link: KalmanLink, weight: float) -> Any:
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        raise Refused(f"module '{link.path}' ({link.cls}) is no batch norm with running statistics.")
    cls = ChainedKalmanNorm1d if link.dims == 1 else ChainedKalmanNorm2d
    norm = cls(
        module.num_features,
        module.eps,
        module.momentum,
        transition="none" if link.before is None else "conv-moments",
        prediction_weight=weight,
        state_source="post-affine",
        negative_slope=link.negative_slope,
        device=module.running_mean.device,
        dtype=module.running_mean.dtype,
    )
    norm.register_parameter("weight", module.weight)
    norm.register_parameter("bias", module.bias)
    norm.affine = module.weight is not None
    norm.running_mean, norm.running_var = module.running_mean, module.running_var  # type: ignore[assignment]
    if module.num_batches_tracked is not None:
        norm.num_batches_tracked = module.num_batches_tracked
    return norm


def plan_kalman(patient: Patient, places: Sequence[NormPlace], weight: float) -> ChainKalmanNorms:
    """The edit that chains batch norms that follow one another through an activation and one weight layer.

    A norm without such a neighbour, as after a sum, has nothing to predict from and predicts nothing: it
    stays.

    Raises:
        Refused: If no two norms follow one another in that way.
    """
    flow = patient.capture.train if patient.capture is not None else None
    if flow is None:
        raise Refused("which norm follows which is seen in training mode: pass a loader or example inputs.")
    fit = {place.path: place for place in places if _fits(place)}
    first = {norm.id: norm.calls[0] for norm in flow.norms if len(norm.calls) == 1}
    calls = {first[place.id]: path for path, place in fit.items() if place.id in first}
    runs = Counter(node.module for node in flow.nodes if node.kind == "weight")
    links: dict[str, KalmanLink] = {}
    heads: list[str] = []
    for call, path in calls.items():
        place, chained = fit[path], _before(patient.network, flow, call, calls)
        if chained is not None and runs[chained[1]] == 1:
            before, layer, slope = chained
            links[path] = KalmanLink(
                place.id, path, place.cls, _dims(place), before, layer, slope, place.source
            )
            heads.append(before)
    if not links:
        raise Refused(
            "no two batch norms follow one another through a ReLU and one weight layer: there is nothing "
            "that a Kalman norm could predict from."
        )
    chain = [
        links.get(path) or KalmanLink(place.id, path, place.cls, _dims(place), source=place.source)
        for path, place in fit.items()
        if path in links or path in heads
    ]
    return ChainKalmanNorms(tuple(chain), weight)


def _dims(place: NormPlace) -> int:
    return 2 if place.shape is not None and len(place.shape) == 4 else 1


def _fits(place: NormPlace) -> bool:
    plain = read_norm(place) is not None and isinstance(place.module, _BatchNorm)
    called = place.site is not None and len(place.site.calls) == 1
    return (
        plain
        and called
        and place.norm is not None
        and place.shape is not None
        and len(place.shape) in (2, 3, 4)
    )


def _before(
    network: nn.Module, flow: Flow, call: int, calls: Mapping[int, str]
) -> tuple[str, str, float] | None:
    """The norm before a norm, the weight layer between them, and the slope of the activation there."""
    weight = _signal(flow, flow.nodes[call])
    if weight is None or weight.kind != "weight":
        return None
    try:
        layer = network.get_submodule(weight.module)
    except AttributeError:
        return None
    if not isinstance(layer, _LAYERS):
        return None
    source, slope = _signal(flow, weight), 1.0
    if source is not None and source.kind == "activation" and source.op in ("relu", "leaky_relu"):
        slope = 0.0 if source.op == "relu" else _slope(source)
        source = _signal(flow, source)
    if source is None or source.index not in calls:
        return None
    return calls[source.index], weight.module, slope


def _slope(node: Node) -> float:
    values = [*node.args[1:2], node.kwargs.get("negative_slope")]
    return next((float(value) for value in values if isinstance(value, (int, float))), 0.01)


def _signal(flow: Flow, node: Node) -> Node | None:
    """The operation whose result another one works on, where there is only one."""
    sources = [flow.nodes[index] for index in node.inputs]
    signals = [one for one in sources if one.kind not in ("parameter", "buffer", "constant", "attribute")]
    counted = [one for one in signals if one.shape not in ((), None)]  # without the count of batches
    return counted[0] if len(counted) == 1 else None
