"""What each noise site of a network hangs on: a module of its own, or an attribute that sets its rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._noise_edits import holder_of, plain_attributes
from varshift.fixes._patient import Patient
from varshift.fixes._trial import output_in_evaluation
from varshift.flow import Flow, NoiseSite, capture_in_place
from varshift.model import one_at_a_time, shadowed

_NEAR = 4  # modules around a call in which the attribute that drives it is looked for
_ERROR = 2e-5  # of rates that are read from a mask's arithmetic
_LOW, _WIDTH = 0.05, 0.44  # probe values: below one half, so that none is another's complement


@dataclass(frozen=True, slots=True)
class OwnModule:
    """A module whose only job is the noise.

    Attributes:
        path: Its first path.
        cls: Its class name.
        sites: The noise sites that it makes, one for every place that calls it.
        dimensions: Number of dimensions of its input.
        always: Whether it acts in evaluation, too.
    """

    path: str
    cls: str
    sites: tuple[SiteId, ...]
    dimensions: int
    always: bool


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number that a module, or an object that it holds, has under a name.

    Attributes:
        path: Path of the module.
        name: Name of the attribute, dotted where an object of the module holds it.
        value: Its value.
    """

    path: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Driver:
    """An attribute that was seen to drive rates.

    Attributes:
        attribute: The attribute.
        sites: Every site whose rate follows it.
        keeps: Whether it is a keep probability: the rate is 1 minus its value.
    """

    attribute: Attribute
    sites: tuple[SiteId, ...]
    keeps: bool = False


class Handles:
    """What the noise sites of a patient hang on; looked at once, before anything is changed.

    Args:
        patient: The network, with a capture.

    Attributes:
        sites: The noise sites that act, in training or in evaluation, skipped layers among them.
        always: Those that act in evaluation.
    """

    def __init__(self, patient: Patient) -> None:
        self._patient = patient
        self.sites: dict[SiteId, NoiseSite] = {**patient.noises, **patient.layer_drops}
        self.always = self._acting("eval")
        self._modules = dict(patient.network.named_modules(remove_duplicate=False))
        self._identities: dict[Any, bool] = {}
        self._own: dict[SiteId, OwnModule] = {}
        for path in dict.fromkeys(maker for site in patient.noises.values() for maker in _makers(site)):
            own = self._own_module(path)
            if own is not None:
                self._own.update((site, own) for site in own.sites if site not in self._own)
        self._candidates = self._list_candidates()
        self._drivers: dict[SiteId, Driver] | None = None

    def own_module(self, site: SiteId) -> OwnModule | None:
        """The module whose only job a noise is; None where it is made by a call in another module."""
        return self._own.get(site)

    def driver(self, site: SiteId) -> Driver | None:
        """The attribute that drives a site's rate; None where none was seen to do so."""
        return self._probe().get(site)

    def presumed(self, site: SiteId) -> Driver | None:
        """The one attribute near a site that can drive its rate; None where several can, or that is measured.

        For a plan that takes noise away: if another attribute drives it, the noise is still there, and if
        this one drives other places, their noise is gone. The proof of the plan shows both.
        """
        driver = (self._presumptions or {}).get(site) if self._presumes else None
        self._patient.presumed |= driver is not None
        return driver

    def readers(self, own: OwnModule) -> tuple[Driver, ...]:
        """Attributes of a noise module that drive other places than its own."""
        if not any(
            attribute.path == own.path and self._reads(attribute, own) for attribute in self._candidates
        ):
            return ()
        if self._presumes and self._presumptions is not None:  # every other place has a driver of its own
            self._patient.presumed = True
            return ()
        drivers = {id(driver): driver for driver in self._probe().values()}
        return tuple(
            driver
            for driver in drivers.values()
            if driver.attribute.path == own.path and set(driver.sites) - set(own.sites)
        )

    def rates_of(self, own: OwnModule) -> tuple[str, ...]:
        """The names under which a noise module holds its rate."""
        rates = [self.sites[site].rate for site in own.sites]
        return tuple(
            name
            for name, value in plain_attributes(self._modules[own.path]).items()
            if isinstance(value, float) and any(rate is not None and _fits(value, rate) for rate in rates)
        )

    def _reads(self, attribute: Attribute, own: OwnModule) -> bool:
        return any(site not in own.sites for site in self._candidates[attribute])

    # -- modules of their own ---------------------------------------------------------------------------

    def _own_module(self, path: str) -> OwnModule | None:
        module = self._modules.get(path)
        if module is None or next(module.children(), None) is not None:
            return None
        if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
            return None
        noises = self._patient.noises
        sites = tuple(site.id for site in noises.values() if path in _makers(site))
        shape = self._shape(path, self.sites[sites[0]])
        always = any(site in self.always for site in sites)
        if path == "" or not _takes_one(module) or not (always or self._is_identity(module, shape)):
            return None
        return OwnModule(path, type(module).__name__, sites, len(shape), always)

    def _shape(self, path: str, site: NoiseSite) -> tuple[int, ...]:
        """Shape of what a module makes noise on."""
        node = site.node if site.name == path else site.drawn[0].node
        flow = self._patient.flow_of(site)
        return flow.nodes[node].shape or () if flow is not None else ()

    def _is_identity(self, module: nn.Module, shape: tuple[int, ...]) -> bool:
        """Whether a module passes its input on in evaluation."""
        try:
            key = type(module), tuple(sorted(plain_attributes(module).items())), len(shape)
            if key in self._identities:
                return self._identities[key]
        except TypeError:  # values that cannot be sorted
            key = id(module)
        self._identities[key] = answer = _passes(module, shape)
        return answer

    # -- attributes ---------------------------------------------------------------------------------------

    def _list_candidates(self) -> dict[Attribute, list[SiteId]]:
        """Every number near a site that has the value of its rate, or of 1 minus it."""
        listed: dict[Attribute, list[SiteId]] = {}
        names: dict[tuple[int, str], Attribute] = {}  # what is reached on several ways is one attribute
        for site in self.sites.values():
            if site.rate is None or site.rate <= 0:
                continue
            for path in self._near(site):
                for attribute, owner in self._numbers(path):
                    if not _fits(attribute.value, site.rate):
                        continue
                    attribute = names.setdefault((id(owner), attribute.name.rpartition(".")[2]), attribute)
                    sites = listed.setdefault(attribute, [])
                    if site.id not in sites:
                        sites.append(site.id)
        return listed

    def _near(self, site: NoiseSite) -> Sequence[str]:
        """The modules at work where a noise is made, the innermost first."""
        calls = (site.calls, *(draw.calls for draw in site.drawn))
        near = [frame.module for frames in calls for frame in reversed(frames[-_NEAR:])]
        paths = [site.name, *(draw.name for draw in site.drawn), *near]
        return [path for path in dict.fromkeys(paths) if path in self._modules]

    def _numbers(self, path: str) -> Iterator[tuple[Attribute, Any]]:
        module = self._modules[path]
        yield from self._held(path, module)
        for name, child in module.named_children():
            if not any(True for _ in child.children()) and not any(True for _ in child.parameters()):
                yield from self._held(f"{path}.{name}" if path else name, child)

    def _held(self, path: str, module: nn.Module) -> Iterator[tuple[Attribute, Any]]:
        for name, value in vars(module).items():
            if isinstance(value, float):
                yield Attribute(path, name, value), module
            elif not name.startswith("_") and _is_record(value):
                for inner, number in vars(value).items():
                    if isinstance(number, float):
                        yield Attribute(path, f"{name}.{inner}", number), value

    @property
    def _presumes(self) -> bool:
        return self._patient.presumes and self._drivers is None

    @cached_property
    def _presumptions(self) -> dict[SiteId, Driver] | None:
        """The drivers of all noise that has no module of its own; None where some have several candidates."""
        patient = self._patient
        if patient.layer_drops or any(flow.by_chance for flow in patient.flows):
            return None  # proofs compare less where chance decides what runs
        own = {module.path for module in self._own.values()}
        driven: dict[Attribute, list[SiteId]] = {}
        for site in self.sites.values():
            near = [attribute for attribute, sites in self._candidates.items() if site.id in sites]
            if site.id in self._own or not near:
                continue
            near = [attribute for attribute in near if attribute.path not in own]
            if len(near) != 1 or abs(near[0].value - 0.5) <= _ERROR:  # a half may be kept or dropped
                return None
            driven.setdefault(near[0], []).append(site.id)
        return {
            site: Driver(
                attribute, tuple(sites), abs(attribute.value - (self.sites[site].rate or 0)) > _ERROR
            )
            for attribute, sites in driven.items()
            for site in sites
        }

    def _probe(self) -> dict[SiteId, Driver]:
        """Which attribute drives which sites, by one capture of a copy whose attributes all differ."""
        if self._drivers is not None:
            return self._drivers
        attributes = list(self._candidates)
        values = [_LOW + _WIDTH * number / (len(attributes) + 1) for number in range(1, len(attributes) + 1)]
        train = self._perturbed(attributes, values) if attributes else None
        if train is None:
            self._drivers = {}
            return {}
        driven: dict[tuple[int, bool], list[SiteId]] = {}
        for site in (*train.noises, *train.decisions):
            if site.rate is None:
                continue
            for keeps, rate in ((False, site.rate), (True, 1 - site.rate)):
                number = min(range(len(values)), key=lambda place: abs(values[place] - rate))
                if abs(values[number] - rate) <= _ERROR:
                    driven.setdefault((number, keeps), []).append(site.id)
        drivers: dict[SiteId, Driver] = {}
        for (number, keeps), sites in driven.items():
            if (number, not keeps) in driven:
                continue  # one number as rate here and keep probability there: no value does for both
            driver = Driver(attributes[number], tuple(sites), keeps)
            drivers.update(dict.fromkeys(sites, driver))
        whole = {site.id for site in train.noises} >= self._acting("train")
        if whole or train.by_chance or train.decisions:
            self._drivers = drivers  # else an earlier cure has taken sites away: ask again next time
        return drivers

    def _acting(self, mode: str) -> set[SiteId]:
        return {site.id for flow in self._patient.flows if flow.mode == mode for site in flow.noises}

    def _perturbed(self, attributes: Sequence[Attribute], values: Sequence[float]) -> Flow | None:
        """The training flow of a copy whose attributes have other values; None where it does not run."""
        patient, network = self._patient, self._patient.network
        restores: list[tuple[Any, str, Any]] = []
        with one_at_a_time, shadowed(network, seed=0, resets=False) as shadow, shadow, shadow:
            try:
                for attribute, value in zip(attributes, values, strict=True):
                    owner, name = holder_of(shadow.network.get_submodule(attribute.path), attribute.name)
                    restores.append((owner, name, getattr(owner, name)))
                    setattr(owner, name, value)
                return capture_in_place(shadow.network, patient.example, forward=patient.forward).train
            except (VarshiftError, AttributeError, TypeError):
                return None
            finally:
                for owner, name, value in reversed(restores):  # objects that copies share
                    setattr(owner, name, value)


def handles_of(patient: Patient) -> Handles:
    """The handles of a patient, looked for once."""
    handles = vars(patient).get("_noise_handles")
    if handles is None:
        handles = vars(patient)["_noise_handles"] = Handles(patient)
    return handles


def _makers(site: NoiseSite) -> tuple[str, ...]:
    """The module where a noise acts, and that which draws it for others: a mask that several layers share."""
    drawn = {draw.name for draw in site.drawn}
    return (site.name, *drawn) if len(drawn) == 1 and site.name not in drawn else (site.name,)


def _fits(value: float, rate: float) -> bool:
    """Whether a number is a rate, or the keep probability that belongs to it."""
    return abs(value - rate) <= _ERROR or abs(1 - value - rate) <= _ERROR


def _takes_one(module: nn.Module) -> bool:
    """Whether a module can be called with a single value."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return len(needed) <= 1 and (bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters))


def _is_record(value: Any) -> bool:
    """Whether a value is a plain object with attributes, such as a configuration."""
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value) or not hasattr(value, "__dict__"):
        return False
    return not inspect.ismodule(value)


def _passes(module: nn.Module, shape: tuple[int, ...]) -> bool:
    value = torch.linspace(-2, 3, max(math.prod(shape), 1)).reshape(shape)
    result = output_in_evaluation(module, value)
    return result is value or (
        isinstance(result, Tensor) and result.shape == value.shape and bool(torch.equal(result, value))
    )
