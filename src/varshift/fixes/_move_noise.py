"""Noise at another place: after the last norm, in the slot of its branch, around a pooling, on the branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from varshift import theory
from varshift._errors import VarshiftError
from varshift._sites import SiteId
from varshift.fixes._addresses import Address, Addresses, Side
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import NoiseAction, NoiseKind
from varshift.fixes._noise_method import plan_noise
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._rewrite import InsertAtCall, InsertNoise
from varshift.fixes._rewrite_chain import chain_of
from varshift.fixes._slots import Slot, Slots, place_of, words
from varshift.fixes._surgery import Refused
from varshift.flow import NoiseSite
from varshift.rules import Finding, Safety

Target = Literal["head", "before-pooling", "after-pooling", "branch-slot", "branch", "linear"]

# What each kind of noise is at its new place: a drop block and alpha dropout become plain dropout.
_KINDS: dict[str, NoiseKind] = {
    "dropout": "dropout",
    "alpha_dropout": "dropout",
    "drop_block": "dropout",
    "channel_dropout": "channel_dropout",
    "feature_alpha_dropout": "channel_dropout",
    "uniform": "uniform",
    "gaussian": "gaussian",
}
_POOLED = ("dropout", "alpha_dropout")


@dataclass(frozen=True, slots=True)
class MoveNoiseOptions:
    """Where noise goes.

    Attributes:
        to: ``"head"`` (after the network's last norm, in front of the last weight of each output),
            ``"before-pooling"`` (in front of the global average pooling that it follows), ``"after-pooling"``
            (after the max pooling that reads it), ``"branch-slot"`` (in its residual branch, after the last
            norm and in front of the last weight), ``"branch"`` (drop path: from the shortcut or the sum to
            the branch) or ``"linear"`` (where the outputs are linear in it).
        rate: Its rate there; by default the rate that it had, of several that move to one place that of the
            strongest.
    """

    to: str = "head"
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.to not in get_args(Target):
            raise VarshiftError(
                f"to={self.to!r} is no place for noise: expected {', '.join(get_args(Target))}."
            )


@remedy
class MoveNoise(Remedy):
    """Takes noise away where it is and puts it to another place; evaluation computes what it did."""

    code = "move-noise"
    answers = ("VS101", "VS102", "VS103", "VS104", "VS105", "VS107", "VS208")
    safety: ClassVar[Safety] = "unsafe"
    options = MoveNoiseOptions
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: MoveNoiseOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """The old places lose their noise, the new ones get it."""
        flow = patient.capture.train if patient.capture else None
        if flow is None:
            raise Refused("noise is moved in a captured network only, and there are no inputs to run it on.")
        return _Move(patient, Slots(flow), options).plan(sites)


class _Move:
    """One plan."""

    def __init__(self, patient: Patient, slots: Slots, options: MoveNoiseOptions) -> None:
        self._patient = patient
        self._slots = slots
        self._options = options

    def plan(self, names: Sequence[SiteId]) -> tuple[Edit, ...]:
        """The edits for some sites, or for all that can be moved."""
        sites = self._named(names) if names else self._movable()
        if self._options.to in ("head", "linear"):
            return self._to_head(sites)
        places: dict[Slot, list[NoiseSite]] = {}
        moved = []
        for site in sites:
            slots = self._places(site)
            for slot in slots:
                places.setdefault(slot, []).append(site)
            moved += [site] if slots else []
        if not moved:
            raise Refused(f"{place_of(sites[0])} is at this place already.")
        side: Side = "after" if self._options.to in ("after-pooling", "branch") else "before"
        by_action: dict[NoiseAction, list[Slot]] = {}
        for slot, members in places.items():
            by_action.setdefault(self._action(members), []).append(slot)
        return (*self._removal(moved), *self._insertions(by_action, side))

    def _to_head(self, sites: Sequence[NoiseSite]) -> tuple[Edit, ...]:
        slots = self._slots.head() if self._options.to == "head" else self._slots.linear()
        moved = [site for site in sites if not any(self._is_at(site, slot) for slot in slots)]
        if not moved:
            raise Refused(f"{place_of(sites[0])} is at this place already.")
        action = self._action(moved)
        stronger: dict[SiteId, NoiseAction] = {}
        empty = []
        for slot in slots:
            present = [site for site in self._slots.flow.noises if site.rate != 0 and self._is_at(site, slot)]
            if not present:
                empty.append(slot)
                continue
            if max(map(_strength, present)) < _variance(action.kind, action.value):
                stronger[present[-1].id] = _in_place_of(present[-1], action)
            note = f"What was moved joins the noise that is there already: {place_of(present[-1])}."
            if note not in self._patient.notes:
                self._patient.notes.append(note)
        changed = plan_noise(self._patient, stronger) if stronger else ()
        return (*self._removal(moved), *changed, *self._insertions({action: empty}, "before"))

    def _is_at(self, site: NoiseSite, slot: Slot) -> bool:
        linear = self._options.to == "linear"
        return not self._slots.sees_norm(site) and self._slots.is_close(site, slot, linear=linear)

    def _places(self, site: NoiseSite) -> tuple[Slot, ...]:
        slots = self._slots
        if self._options.to == "after-pooling":
            return slots.after_pooling(site)
        find: dict[str, Callable[[NoiseSite], Slot | None]] = {
            "before-pooling": slots.before_pooling,
            "branch-slot": slots.branch_slot,
            "branch": slots.branch,
        }
        slot = find[self._options.to](site)
        return () if slot is None else (slot,)

    def _named(self, names: Sequence[SiteId]) -> list[NoiseSite]:
        known = {site.id: site for site in self._slots.flow.noises}
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            raise Refused(f"'{missing}' makes no noise in training, or not under this name.")
        return [known[name] for name in dict.fromkeys(names)]

    def _movable(self) -> list[NoiseSite]:
        """All sites that are wrong where they are, as far as this place is concerned."""
        to = self._options.to
        if to == "branch":
            sites = [site for site in self._acting(["drop_path"]) if site.drops in ("identity", "everything")]
        elif to == "after-pooling":
            sites = [site for site in self._acting(_KINDS) if site.pools]
        elif to == "before-pooling":
            sites = [site for site in self._acting(_POOLED) if self._has_place(site)]
        elif to == "branch-slot":
            sites = [site for site in self._acting(_KINDS) if site.reaches and self._has_place(site)]
        else:
            sites = [site for site in self._acting(_KINDS) if site.reaches or to == "linear"]
        if not sites:
            raise Refused(f"there is no noise that could be moved (to={to!r}).")
        return sites

    def _acting(self, kinds: Iterable[str]) -> list[NoiseSite]:
        noises = self._slots.flow.noises
        return [site for site in noises if site.kind in kinds and site.rate != 0 and not site.additive]

    def _has_place(self, site: NoiseSite) -> bool:
        try:
            return bool(self._places(site))
        except Refused:
            return False

    def _action(self, sites: Sequence[NoiseSite]) -> NoiseAction:
        """The noise that the new place gets from the sites that move there."""
        on_branch: dict[str, NoiseKind] = {"drop_path": "drop_path"}
        kinds = on_branch if self._options.to == "branch" else _KINDS
        for site in sites:
            if site.kind not in kinds or site.additive:
                what = "noise that is added to the signal" if site.additive else site.kind.replace("_", " ")
                raise Refused(
                    f"{place_of(site)} is {what}, which has no counterpart there (to={self._options.to!r}): "
                    "lower its rate, or remove it."
                )
        strongest = max(sites, key=_strength)
        rate = self._options.rate if self._options.rate is not None else strongest.rate
        if rate is None:
            raise Refused(
                f"the rate of {place_of(strongest)} is not known: give one, as in options={{'rate': 0.1}}."
            )
        return NoiseAction(kinds[strongest.kind], rate)

    def _removal(self, sites: Iterable[NoiseSite]) -> Sequence[Edit]:
        return plan_noise(self._patient, {site.id: NoiseAction("remove") for site in sites})

    def _insertions(self, by_action: dict[NoiseAction, list[Slot]], side: Side) -> list[Edit]:
        addresses = Addresses(self._slots.flow, self._slots.ways)
        return [
            self._insertion(address, action)
            for action, slots in by_action.items()
            for address in addresses.find(slots, side)
        ]

    def _insertion(self, address: Address, action: NoiseAction) -> Edit:
        if not address.calls:
            return InsertNoise(address.path, address.side, action)
        call = chain_of(self._patient.network, address.calls)
        if call is None:
            place = f"{address.side} {words(address.node)}"
            raise Refused(f"the call cannot be edited: put {action.text} {place} by hand.")
        return InsertAtCall(*call, action, address.side)


def _strength(site: NoiseSite) -> float:
    """Variance of a site's factor, to tell which of several is the strongest."""
    return _variance(_KINDS.get(site.kind, site.kind), site.rate)


def _variance(kind: str, rate: float | None) -> float:
    """Variance of a factor, 0 where it is not known."""
    if rate is None:
        return 0.0
    try:
        return theory.noise_variance(kind, rate)
    except ValueError:  # a drop probability of 1, or no factor at all
        return math.inf if rate == 1 else 0.0


def _in_place_of(site: NoiseSite, action: NoiseAction) -> NoiseAction:
    same = _KINDS.get(site.kind) == action.kind == site.kind
    return NoiseAction("rate", action.value) if same else action
