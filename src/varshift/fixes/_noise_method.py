"""The choice of a method for a change of noise: another module, an attribute, or the call itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from varshift._sites import SiteId
from varshift.fixes._attention_calls import attention_chains
from varshift.fixes._edit import Edit
from varshift.fixes._noise_action import OTHER_NOISE, NoiseAction
from varshift.fixes._noise_edits import SetAttribute, SwapNoiseModule
from varshift.fixes._noise_handles import Handles, OwnModule, handles_of
from varshift.fixes._patient import Patient
from varshift.fixes._rewrite import RewriteCall
from varshift.fixes._rewrite_by_hand import edit_by_hand
from varshift.fixes._rewrite_chain import call_chain, operation_chain
from varshift.fixes._rewrite_join import Join, join_of, joined_alike
from varshift.fixes._source_code import CallPlace
from varshift.fixes._surgery import Refused
from varshift.flow import CallFrame, NoiseSite


def plan_noise(
    patient: Patient, wishes: Mapping[SiteId, NoiseAction], *, whole: bool = True
) -> tuple[Edit, ...]:
    """The edits that change some noise sites, each by the least that does it.

    Where a module does nothing but make the noise, another module takes its place on all of its paths.
    Where an attribute drives the rate of exactly the wished places, it is set. Which one drives what is shown
    by one more capture, of a copy in which every number near the calls has a value of its own; to remove
    noise that only one number can drive, it is left to the proof. Otherwise the call is rewritten in its
    method. A call in a loop is one place, however often it runs.

    Args:
        patient: The network, with a capture.
        wishes: What becomes of which noise site.
        whole: Whether all or nothing is wished; otherwise places that cannot be changed are noted and left.

    Raises:
        Refused: If a place cannot be changed, or none can; the text says why, and what to edit by hand.
    """
    require_capture(patient)
    choice = _Choice(patient, wishes)
    reasons: list[Refused] = []
    edits = choice.edits(None if whole else reasons)
    if reasons and not edits:
        raise reasons[0]
    patient.notes.extend(str(reason) for reason in reasons if str(reason) not in patient.notes)
    return edits


def require_capture(patient: Patient) -> None:
    """Refuses where the network was not run, so that its noise is not known."""
    if patient.capture is None:
        raise Refused("where noise acts is only seen when the network is run: pass a loader or shape=.")


class _Choice:
    """The wishes, and what is planned for them so far."""

    def __init__(self, patient: Patient, wishes: Mapping[SiteId, NoiseAction]) -> None:
        self._patient, self._wishes = patient, wishes
        self._handles: Handles = handles_of(patient)
        self._done: set[SiteId] = set()
        self._edits: list[Edit] = []

    def edits(self, reasons: list[Refused] | None) -> tuple[Edit, ...]:
        """The edits for all wishes; what cannot be changed is raised, or listed where there is a list."""
        for site, action in self._wishes.items():
            if site not in self._handles.sites:
                raise Refused(f"{site}: no noise acts there.")
            if site in self._done:
                continue
            try:
                self._plan(self._handles.sites[site], action)
            except Refused as reason:
                if reasons is None:
                    raise
                reasons.append(reason)
        return tuple(dict.fromkeys(self._edits))

    def _plan(self, site: NoiseSite, action: NoiseAction) -> None:
        if site.kind == "layer_drop":
            if self._sets(site, action):
                return
            raise Refused(
                f"{site.id}: Python chooses what runs ({site.source}), and no attribute was seen to set how "
                "often: pass another rate where the network is built."
            )
        methods = (self._swaps, self._sets, self._rewrites, self._rewrites_layer)
        if any(method(site, action) for method in methods):
            return
        raise Refused(f"{site.id} cannot be changed here. By hand: {self._by_hand(site, action)}")

    def _note(self, edit: Edit, sites: Iterable[SiteId]) -> bool:
        self._edits.append(edit)
        self._done.update(sites)
        return True

    def _wished(self, sites: Iterable[SiteId], action: NoiseAction) -> bool:
        """Whether the same is wished for all of some sites."""
        return all(self._wishes.get(site) == action for site in sites)

    # -- a module of its own ------------------------------------------------------------------------------

    def _swaps(self, site: NoiseSite, action: NoiseAction) -> bool:
        own = self._handles.own_module(site.id)
        if own is None or not _takes(own, action) or not self._wished(own.sites, action):
            return False
        return self._swap(site, own, action)

    def _swap(self, site: NoiseSite, own: OwnModule, action: NoiseAction) -> bool:
        carried: list[tuple[str, float]] = []
        sites = [*own.sites]
        if action.kind == "remove":
            others = {reader.attribute.name: reader for reader in self._handles.readers(own)}
            for name in self._handles.rates_of(own):
                reader = others.get(name)
                if reader is None or self._wished(reader.sites, action):
                    keeps = name == "keep_prob" or (reader is not None and reader.keeps)
                    carried.append((name, 1.0 if keeps else 0.0))
                    sites += [other for other in (reader.sites if reader else ()) if other not in sites]
        edit = SwapNoiseModule(
            own.path, own.cls, action, tuple(sites), own.dimensions, tuple(carried), site.source
        )
        return self._note(edit, sites)

    # -- an attribute ---------------------------------------------------------------------------------------

    def _sets(self, site: NoiseSite, action: NoiseAction) -> bool:
        if action.kind not in ("remove", "rate"):
            return False
        driver = self._handles.presumed(site.id) if action.kind == "remove" else None
        if driver is None or not self._wished(driver.sites, action):
            driver = self._handles.driver(site.id)
        if driver is None:
            return False
        functional = self._handles.own_module(site.id) is None
        for name in driver.sites:
            other = self._handles.sites.get(name)
            if not self._wished([name], action) and not (functional and other and _alike(other, site)):
                return False
        rate = action.value or 0.0
        attribute = driver.attribute
        after = 1 - rate if driver.keeps else rate
        edit = SetAttribute(
            attribute.path, attribute.name, attribute.value, after, driver.sites, source=site.source
        )
        return self._note(edit, driver.sites)

    # -- the call ----------------------------------------------------------------------------------------

    def _rewrites(self, site: NoiseSite, action: NoiseAction) -> bool:
        """Rewrites the call that acts at the fewest places that are not wished."""
        best: tuple[int, Edit, Sequence[SiteId]] | None = None
        refusal: Refused | None = None
        for candidate in self._calls(site, action):
            sites = self._sharing(site, candidate)
            extra = sum(self._wishes.get(other) != action for other in sites)
            if best is not None and extra >= best[0]:
                continue
            edit = replace(candidate, sites=tuple(sites))
            try:
                edit.edited(self._patient.network)
            except Refused as reason:
                refusal = refusal or reason
                continue
            best = extra, edit, sites
        own = self._handles.own_module(site.id)
        if best is not None and best[0] and own and _takes(own, action) and set(own.sites) <= set(best[2]):
            return self._swap(site, own, action)  # its call is one for all places: as good, without surgery
        if best is not None:
            return self._note(*best[1:])
        if refusal is not None:
            raise Refused(f"{site.id}: {refusal} By hand: {self._by_hand(site, action)}")
        return False

    def _calls(self, site: NoiseSite, action: NoiseAction) -> Iterator[RewriteCall]:
        """The calls that may be rewritten for a site, last the operation that joins it with its signal."""
        always = site.id in self._handles.always
        for path, chain in call_chain(self._patient.network, site):
            yield RewriteCall(site.id, path, chain, action, always and action.kind in OTHER_NOISE)
        join = self._join(site)
        place = operation_chain(self._patient.network, site) if join is not None else None
        if place is not None:
            edit = RewriteCall(site.id, *place, action, always, join=join)
            others = [self._handles.sites[other] for other in self._sharing(site, edit)]
            if join is not None and all(joined_alike(join, self._join(other)) for other in others):
                yield edit

    def _join(self, site: NoiseSite) -> Join | None:
        flow = self._patient.flow_of(site)
        return join_of(flow, site) if flow is not None else None

    def _by_hand(self, site: NoiseSite, action: NoiseAction) -> str:
        return edit_by_hand(site, action, self._join(site))

    def _rewrites_layer(self, site: NoiseSite, action: NoiseAction) -> bool:
        """Rewrites the calls inside an attention layer of torch, all places at which it is called alike."""
        module = self._patient.network.get_submodule(site.name)
        sites = tuple(other for other in self._handles.sites if other.module == site.name)
        chains = attention_chains(module)
        if not chains or not self._wished(sites, action):
            return False
        edits = [RewriteCall(site.id, site.name, chain, action, sites=sites) for chain in chains]
        for edit in edits:
            edit.edited(self._patient.network)
        self._edits += edits
        self._done.update(sites)
        return True

    def _sharing(self, site: NoiseSite, edit: RewriteCall) -> list[SiteId]:
        """All noise sites that a call makes: a loop runs it more than once."""
        place = _span(site.calls, edit.path, edit.chain)
        if not place:
            return [site.id]
        return [
            other.id
            for other in self._handles.sites.values()
            if other.id == site.id or _passes(other.calls, edit.path, place)
        ]


def _alike(site: NoiseSite, other: NoiseSite) -> bool:
    """Whether one call in a loop makes two sites."""
    return site.name == other.name and _positions(site.calls[-1:]) == _positions(other.calls[-1:])


def _takes(own: OwnModule, action: NoiseAction) -> bool:
    """Whether a layer can take the place of a module: one acts in training only."""
    return action.kind == "remove" or (action.kind in OTHER_NOISE and not own.always)


def _span(calls: Sequence[CallFrame], path: str, chain: Sequence[CallPlace]) -> tuple[Any, ...]:
    """The positions of a chain of calls among those that led to a noise; empty where it is not there."""
    places = list(chain)
    last = None
    for index in reversed(range(len(calls))):
        function = calls[index].function
        if function != places[-1].function and not function.startswith(f"{places[-1].function}.<locals>"):
            continue
        last = index if last is None else last
        places.pop()
        if not places:
            return _positions(calls[index : last + 1]) if calls[index].module == path else ()
    return ()


def _passes(calls: Sequence[CallFrame], path: str, place: tuple[Any, ...]) -> bool:
    return any(
        calls[start].module == path and _positions(calls[start : start + len(place)]) == place
        for start in range(len(calls) - len(place) + 1)
    )


def _positions(frames: Sequence[CallFrame]) -> tuple[Any, ...]:
    return tuple(
        (frame.file, frame.function, frame.line, frame.end_line, frame.column, frame.end_column)
        for frame in frames
    )
