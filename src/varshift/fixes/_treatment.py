"""The engine: tries cures on a copy, proves what they changed, checks the result, and drops what fails."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from varshift._errors import VarshiftError, VarshiftWarning
from varshift.fixes._again import not_looked_for, still_there
from varshift.fixes._course import RELIEF, Course, why_kept
from varshift.fixes._cured import Failure
from varshift.fixes._edit import Change, Edit
from varshift.fixes._patient import Patient
from varshift.fixes._proof import prove
from varshift.fixes._rebind_statistics import RebindStatistics, rebound, references_of
from varshift.fixes._recalibrate import Recalibrate, statistics_changes
from varshift.fixes._remedy import REMEDIES, options_of, plan_cure
from varshift.fixes._surgery import Refused, Surgery
from varshift.model import find_norms, short_message_of
from varshift.probe import Recalibration, recalibrate, standard_error
from varshift.report import Report, encode
from varshift.rules import Cure, Finding

Check = Callable[..., Report]
_SHARE = 0.05  # of the deployed loss, beyond two standard errors: no cure may cost so much
_NATS = 0.01
_ERRORS = 2.0
_LAST_KINDS = ("VS304",)  # running averages are those of the kinds that came last: pooled ones are not
_OUTSIDE = ("data", "optimizer", "statistics")  # changes that no operation shows


class Treatment:
    """Treats one copy of a network.

    Args:
        patient: The copy and what is known of it.
        courses: What is to be treated, most urgent first; cures that fail are taken off them.
        check: Checks the copy, given the loader; None where the result is not to be checked.
        surgery: Makes the changes.

    Attributes:
        edits: The edits that stayed.
        changes: What they changed.
        after: The check of the result; None without one.
        recalibration: The handle of the re-estimated statistics; None where they were not.
        notes: What else the user should know.
    """

    def __init__(
        self, patient: Patient, courses: list[Course], check: Check | None, surgery: Surgery
    ) -> None:
        self._patient, self._courses, self._check = patient, courses, check
        self._surgery = surgery
        self.after: Report | None = None
        self.recalibration: Recalibration | None = None
        self.notes: list[str] = []

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of all courses in order, each once."""
        edits: list[Edit] = []
        for course in self._courses:
            edits += [edit for edit in course.edits if edit not in edits]
        return tuple(edits)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What they changed."""
        return tuple(change for course in self._courses for change in course.changes)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What could not be cured."""
        failures = []
        for course in self._courses:
            cure, finding = course.cure, course.finding
            if cure is not None and not course.relief:
                continue
            tried = tuple(course.reasons.items())
            if cure is not None:
                tried = (*tried, (cure.code, course.relief))
            others = finding.cures if finding is not None else ()
            untried = [cure for cure in others if cure.code not in dict(tried)]
            unsafe = [c.code for c in untried if c.code in REMEDIES and c.code != "recalibrate"]
            by_hand = tuple(cure.name for cure in untried if cure.code not in REMEDIES)
            sites = tuple(site.id for site in finding.sites) if finding is not None else ()
            failures.append(Failure(finding.code if finding else "", tried, by_hand, tuple(unsafe), sites))
        return tuple(failures)

    def run(self) -> None:
        """Treats until every course has worked or run out of cures."""
        self._treat()
        self.notes = [*dict.fromkeys([*self._patient.notes, *self.notes])]

    def _treat(self) -> None:
        while True:
            self._surgery.undo()
            self._operate()
            if not any(course.edits for course in self._courses):
                return
            if self._disproved():
                continue
            self._restate()
            if not self._failed():
                return

    # -- surgery ----------------------------------------------------------------------------------------

    def _operate(self) -> None:
        """Plans and makes the edits of every course."""
        self.recalibration, self.after, self.notes = None, None, []
        self._patient.notes.clear()
        self._patient.presumed = False
        for course in self._courses:
            course.edits, course.changes = (), ()
        made: set[Edit] = set()
        for group in self._groups():
            if not self._together(group, made):  # what does not do for all may do for one
                for course in group:
                    self._alone(course, made)

    def _together(self, group: list[Course], made: set[Edit]) -> bool:
        """Carries out one cure for several courses at once, where that is possible."""
        cure = group[0].cure
        if len(group) == 1 or cure is None:
            return False
        mark = self._surgery.mark()
        try:
            edits, changes = self._carry_out(cure, group, made)
        except Refused:
            self._surgery.undo_to(mark)
            return False
        made.update(edits)
        for course in group:
            course.edits = edits
        group[0].changes = changes
        return True

    def _alone(self, course: Course, made: set[Edit]) -> None:
        """Carries out the first cure of a course that can be carried out."""
        while (cure := course.cure) is not None:
            mark = self._surgery.mark()
            try:
                course.edits, course.changes = self._carry_out(cure, [course], made)
            except Refused as reason:
                self._surgery.undo_to(mark)
                course.give_up(str(reason))
                continue
            made.update(course.edits)
            return

    def _groups(self) -> list[list[Course]]:
        """Courses that want the same cure with the same options are carried out as one."""
        groups: dict[str, list[Course]] = {}
        for number, course in enumerate(self._courses):
            cure = course.cure
            if cure is None:
                continue
            key = json.dumps([cure.code, encode(dict(cure.options))])
            groups.setdefault(key if course.finding is not None else f"{number}", []).append(course)
        return list(groups.values())

    def _carry_out(
        self, cure: Cure, group: list[Course], made: set[Edit]
    ) -> tuple[tuple[Edit, ...], tuple[Change, ...]]:
        finding = group[0].finding
        if finding is not None and len(group) > 1:
            sites = {site.id: site for course in group if course.finding for site in course.finding.sites}
            finding = replace(finding, sites=tuple(sites.values()))
            cure = replace(cure, target=None)
        mark = self._surgery.mark()
        try:
            edits, changes = self._planned(cure, finding, made)
        except Refused:
            if not self._measures():
                raise
            self._surgery.undo_to(mark)
            edits, changes = self._planned(cure, finding, made)
        return edits, _explained(changes, cure.code, finding)

    def _planned(
        self, cure: Cure, finding: Finding | None, made: set[Edit]
    ) -> tuple[tuple[Edit, ...], list[Change]]:
        """Plans a cure and makes its edits."""
        edits = tuple(plan_cure(self._patient, cure, finding))
        if not edits:
            raise Refused("there is nothing to change for it.")
        changes: list[Change] = []
        for edit in edits:
            if edit not in made:
                changes += edit.apply(self._surgery)
        return edits, changes

    def _measures(self) -> bool:
        """Whether a plan presumed what drives noise: from now on that is measured."""
        patient = self._patient
        if not (patient.presumes and patient.presumed):
            return False
        patient.presumes = False
        return True

    # -- proof ------------------------------------------------------------------------------------------

    def _disproved(self) -> bool:
        """Whether a second capture shows that something else changed than was wished; drops those courses."""
        patient = self._patient
        edited = [course for course in self._courses if course.changes]
        if patient.capture is None or patient.recapture is None or not edited:
            return False
        reason = self._difference(edited)
        if not reason:
            return False
        if self._measures():
            return True
        for course in edited if len(edited) > 1 else ():
            self._surgery.undo()
            try:
                for edit in course.edits:
                    edit.apply(self._surgery)
            except Refused:  # it builds on what another course did
                continue
            alone = self._difference([course])
            if alone:
                course.give_up(alone)
                return True
        edited[-1].give_up(reason)
        return True

    def _difference(self, edited: list[Course]) -> str:
        patient = self._patient
        assert patient.capture is not None
        assert patient.recapture is not None
        try:
            after = patient.recapture(self._surgery.network)
        except VarshiftError as error:
            return f"the changed network does not run: {short_message_of(error)}"
        if patient.capture.train is not None and after.train is None:
            return f"the changed network does not run in training mode: {' '.join(after.failures)}"
        if patient.capture.eval is not None and after.eval is None:
            return f"the changed network does not run in evaluation mode: {' '.join(after.failures)}"
        changes = [change for course in edited for change in course.changes]
        touched = {change.site for change in changes if change.method not in _OUTSIDE}
        linked = {site for course in edited for edit in course.edits for site in edit.linked}
        proof = prove(patient.capture, after, touched, linked)
        kept = [site for site in proof.kept if site in patient.noises]
        if kept:  # a norm may keep its face, and another momentum
            return f"{kept[0]} is as it was after the change"
        return " ".join(proof.unexpected)

    # -- statistics -------------------------------------------------------------------------------------

    def _restate(self) -> None:
        """Re-estimates statistics where that is a cure, or where what arrives at norms has changed."""
        asked = [course for course in self._courses if any(map(_is_recalibration, course.edits))]
        follows = any(
            course.cure is not None and _restates(course.cure) and self._reaches_norms(course)
            for course in self._courses
        )
        has_norms = follows and bool(find_norms(self._surgery.network))
        if asked or (has_norms and self._patient.loader is not None):
            self._recalibrate(asked, follows=follows)
            return
        self._rebind()
        if has_norms:
            self.notes.append(
                "The statistics of the norms are those of the network before: train it again, or "
                "recalibrate it (varshift.recalibrate)."
            )

    def _recalibrate(self, asked: list[Course], *, follows: bool) -> None:
        """Re-estimates statistics, and keeps them where the network is not worse for it.

        Where they neither follow a change nor are the cure of a finding, they have to be measured to help.
        """
        report = self._patient.report
        reason = "" if report is None or _wished(asked) else why_kept(report.findings)
        if reason:
            self._without_statistics(asked, reason)
            return
        wish = next((e for c in asked for e in c.edits if isinstance(e, Recalibrate)), Recalibrate())
        try:
            handle = self._recalibrated(wish)
        except (VarshiftError, ValueError) as error:
            self._without_statistics(asked, short_message_of(error))
            return
        if handle.effect is not None and handle.effect.worse:
            handle.undo()
            self._without_statistics(asked, f"new ones made the deployed network worse: {handle.effect}")
            return
        if not follows and not any(
            course.cure is not RELIEF or self._may_relieve(course, handle) for course in asked
        ):
            handle.undo()
            effect = "" if handle.effect is None else f": {handle.effect}"
            self._without_statistics(asked, f"new ones were not measured to help{effect}")
            return
        changes = statistics_changes(handle)
        if not changes:
            kept = next(iter(handle.skipped.items()), ("", "there is no norm with running statistics"))
            self._without_statistics(asked, f"no norm got new statistics: {kept[1]}")
            return
        self._surgery.on_undo(handle.undo)
        self.recalibration = handle
        owner = asked[0] if asked else next(course for course in self._courses if course.changes)
        why = "" if asked else "The statistics follow the changes."
        owner.changes += _explained(changes, "recalibrate", owner.finding, why)

    def _may_relieve(self, course: Course, handle: Recalibration) -> bool:
        """Whether new statistics may be kept for what they do, though the cause stays."""
        gap = self._patient.report.gap if self._patient.report is not None else None
        loss = None if gap is None else gap.states.get("eval")
        change = None if gap is None else gap.change("eval", "recalibrated")
        if loss is None or change is None or change[1] is None:
            return bool(_relief(course, handle))
        return _counts(loss, -change[0], change[1]) or bool(_relief(course, handle))

    def _reaches_norms(self, course: Course) -> bool:
        """Whether some norm is downstream of what a course changed; other places than noise count as such."""
        noises = self._patient.noises
        return any(
            bool(noises[change.site].reaches) if change.site in noises else change.site.kind != "noise"
            for change in course.changes
        )

    def _rebind(self) -> None:
        """Takes statistics over from other networks, where that is a cure."""
        for course in self._courses:
            if not any(isinstance(edit, RebindStatistics) for edit in course.edits):
                continue
            handle = rebound(self._surgery.network, references_of(self._patient))
            changes = statistics_changes(handle)
            if not changes:
                course.give_up("no reference has norms like those of this network")
                continue
            self._surgery.on_undo(handle.undo)
            handle.apply()
            self.recalibration = handle
            course.changes = _explained(changes, "rebind-statistics", course.finding)

    def _recalibrated(self, wish: Recalibrate) -> Recalibration:
        patient, network = self._patient, self._surgery.network
        settings = patient.settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VarshiftWarning)  # the effect is looked at by the caller
            if patient.loader is None:
                return recalibrate(network, shape=settings.get("shape"), forward=patient.forward)
            return recalibrate(
                network,
                self._surgery.data,
                noise=wish.noise,
                frozen=wish.frozen,
                forward=patient.forward,
                loss=settings.get("loss"),
            )

    def _without_statistics(self, asked: list[Course], reason: str) -> None:
        """Statistics stay as they are: courses that wanted no more than new ones have failed."""
        for course in asked:
            if all(map(_is_recalibration, course.edits)):
                course.give_up(reason)
        if not asked or any(course.edits for course in asked):
            self.notes.append(f"Statistics were kept: {reason}.")

    # -- the check of the result ------------------------------------------------------------------------

    def _failed(self) -> bool:
        """Whether a cure turned out not to be one; drops those."""
        if any(course.cure is not None and not course.edits for course in self._courses):
            return True  # one gave up after the surgery: its next cure has its turn
        if self._check is None:
            return False
        try:
            self.after = self._check(self._surgery.network, self._surgery.data)
        except VarshiftError as error:
            for course in self._courses:
                if course.edits:
                    course.give_up(f"the changed network cannot be checked: {short_message_of(error)}")
            return True
        failed = False
        for course in self._courses:
            finding = course.finding
            if not course.edits or finding is None:
                continue
            report = self._patient.report
            missing = not_looked_for(finding, report, self.after) if report is not None else ()
            if missing:
                self.notes.append(
                    f"{finding.code} was not looked for again: the second check had no evidence of "
                    f"{', '.join(missing)}. Pass fix what check was given (step=, reference=, deploy=)."
                )
            elif still_there(finding, self.after.findings):
                if course.cure is not None and course.cure.code == "recalibrate":
                    course.relief = _relief(course, self.recalibration) or _fall(report, self.after)
                if course.relief:
                    continue
                course.give_up("it was carried out, and the finding is still there")
                failed = True
        return failed or self._costs_loss()

    def _costs_loss(self) -> bool:
        """Whether the deployed network got worse by cures that were to be safe; drops the last of them."""
        treated = [course for course in self._courses if course.edits and course.finding is not None]
        cures = [course.cure for course in treated if course.cure is not None]
        if not all(cure.safety == "safe" and REMEDIES[cure.code].guarded for cure in cures):
            return False  # what another training will tell, or what was good on batches like these only
        change = _change(self._patient.report, self.after)
        if not treated or change is None:
            return False
        loss, rise, error = change
        if not _counts(loss, rise, error):
            return False
        treated[-1].give_up(f"it made the deployed network worse: the loss rose by {rise:.3g}")
        return True


def _explained(
    changes: Sequence[Change], cure: str, finding: Finding | None, why: str = ""
) -> tuple[Change, ...]:
    """Changes with the cure that made them and what it was for."""
    code, reason = (finding.code, why or finding.message) if finding is not None else ("", why)
    return tuple(replace(change, cure=cure, finding=code, why=change.why or reason) for change in changes)


def _restates(cure: Cure) -> bool:
    remedy = REMEDIES[cure.code]
    return remedy.restates_with(options_of(remedy, cure.options))


def _wished(courses: Sequence[Course]) -> bool:
    return any(course.finding is None for course in courses)


def _relief(course: Course, handle: Recalibration | None) -> str:
    """What new statistics do for a finding whose cause is still there, on batches that they have not seen."""
    effect = None if handle is None else handle.effect
    if effect is None or (handle is not None and handle.leverage is not None):
        return ""
    if effect.better:
        return _relieved(f"the loss in evaluation fell from {effect.before:.3g} to {effect.after:.3g}")
    if course.finding is not None and course.finding.code in _LAST_KINDS and not effect.worse:
        return _relieved(f"the statistics are those of all batches, not of the last ones: {effect}")
    return ""


def _fall(before: Report | None, after: Report) -> str:
    """The same on the batches of the checks; empty where the loss did not fall beyond its error."""
    change = _change(before, after)
    if change is None:
        return ""
    loss, rise, error = change
    if not _counts(loss, -rise, error):
        return ""
    return _relieved(f"the loss in evaluation fell from {loss:.3g} to {loss + rise:.3g}")


def _counts(loss: float, change: float, error: float) -> bool:
    """Whether a change of the loss is beyond its error and large enough to be acted on."""
    return change > max(_SHARE * abs(loss), _NATS, _ERRORS * error)


def _relieved(text: str) -> str:
    return f"{text}; the cause is still there, and will harm the statistics again in training"


def _change(before: Report | None, after: Report | None) -> tuple[float, float, float] | None:
    """Loss in evaluation before, what it rose by on the same batches, and the standard error of that.

    None where a loss was not measured, is not finite, or was measured on other batches. With a single batch
    the error is not known, hence infinite.
    """
    gaps = [report.gap for report in (before, after) if report is not None and report.gap is not None]
    if len(gaps) < 2 or any(gap.metric != "loss" for gap in gaps) or gaps[0].sizes != gaps[1].sizes:
        return None
    losses = [gap.states.get("eval") for gap in gaps]
    first, second = (gap.batches.get("eval", ()) for gap in gaps)
    if losses[0] is None or losses[1] is None or not first or len(first) != len(second):
        return None
    changes = [None if a is None or b is None else b - a for a, b in zip(first, second, strict=True)]
    error = standard_error(changes, gaps[0].sizes)
    return losses[0], losses[1] - losses[0], math.inf if error is None else error


def _is_recalibration(edit: Edit) -> bool:
    return isinstance(edit, Recalibrate)
