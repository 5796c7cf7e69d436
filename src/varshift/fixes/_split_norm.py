"""The cure that gives each of several signals a norm of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varshift._sites import SiteId, Source
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._norm_per_call import NormPerCall
from varshift.fixes._norm_places import NormPlace, norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import Remedy, remedy
from varshift.fixes._surgery import HOOKS, Refused, Surgery
from varshift.flow import Flow
from varshift.rules import Finding, Safety


@edit("split-norm")
@dataclass(frozen=True, slots=True)
class SplitNorm(Edit):
    """Puts one norm per call in the place of a norm that one forward pass calls several times.

    Attributes:
        site: The norm.
        path: Path of its module.
        cls: Class name of its module.
        calls: Number of calls in a forward pass.
        shared: Whether all of them share weight and bias.
        source: The line that calls it.
    """

    site: SiteId
    path: str
    cls: str
    calls: int
    shared: bool = True
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Swaps the norm, and has every forward pass of the network begin with the first of them."""
        module = surgery.module(self.path, self.cls)
        if module is surgery.network:
            raise Refused("the norm is the model itself.")
        norms = NormPerCall(module, self.calls, self.shared)
        hooks = {name: vars(norms)[name] for name in HOOKS}
        surgery.swap(module, norms)
        vars(norms).update(hooks)  # those of the norm stay with it
        handle = surgery.network.register_forward_pre_hook(norms.begin)
        surgery.on_undo(handle.remove)
        after = f"{self.calls} of them, one for each call"
        return (Change(self.site, repr(module), after, "module", self.source),)


@dataclass(frozen=True, slots=True)
class SplitNormOptions:
    """Options of the cure.

    Attributes:
        shared: Whether the norms share weight and bias. Training then computes what it did, and evaluation
            what training computes, once the statistics of each norm have been re-estimated.
    """

    shared: bool = True


@remedy
class SplitNormRemedy(Remedy):
    """Gives each call of a norm statistics of its own, and by choice a weight and bias of its own."""

    code = "split-norm"
    answers = ("VS403",)
    safety = "safe"
    options = SplitNormOptions
    restates = True

    def safety_of(self, options: SplitNormOptions) -> Safety:
        """Own parameters have to be trained."""
        return "safe" if options.shared else "unsafe"

    def plan(
        self,
        patient: Patient,
        sites: Sequence[SiteId],
        options: SplitNormOptions,
        finding: Finding | None,
    ) -> Sequence[Edit]:
        """One edit for each norm; without sites, for each that is called more than once."""
        way = finding.evidence.get("way") if finding is not None else None
        if way in ("configurations", "batches"):
            raise Refused(
                f"the signals come in different {'passes' if way == 'configurations' else 'batches'}, and "
                "only the caller knows which is which: keep one norm for each in a ModuleDict, by name."
            )
        capture = patient.capture
        if capture is None or capture.train is None or capture.eval is None:
            raise Refused("the calls of a norm are counted in both modes: pass a loader or example inputs.")
        edits = []
        for place in norm_places(patient, sites):
            calls, deployed = (_calls(flow, place) for flow in (capture.train, capture.eval))
            if calls < 2 and not sites:
                continue
            if calls < 2:
                raise Refused(f"{place.words} is called once in a forward pass.")
            if calls != deployed:
                raise Refused(
                    f"{place.words} is called {calls} times in training and {deployed} times in evaluation: "
                    "give each signal a norm by name, and choose it where the norm is called."
                )
            if place.path == "" or (place.norm is not None and "#" in place.norm.name):
                raise Refused(
                    f"{place.words} is no module of its own: make one of what normalises there, one a signal."
                )
            edits.append(SplitNorm(place.id, place.path, place.cls, calls, options.shared, place.source))
        if not edits:
            raise Refused("no norm is called more than once in a forward pass.")
        return edits


def _calls(flow: Flow, place: NormPlace) -> int:
    site = place.site_in(flow)
    return len(site.calls) if site is not None else 0
