"""Norms that use the batch in evaluation, too: their call is made to follow the mode of its module."""

from __future__ import annotations

from collections.abc import Sequence

from varshift._sites import SiteId
from varshift.fixes._class_draft import ClassDraft
from varshift.fixes._edit import Edit
from varshift.fixes._edited_class import user_class
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._patient import Patient
from varshift.fixes._recalibrate import Recalibrate
from varshift.fixes._rewrite import RewriteCall, editable
from varshift.fixes._rewrite_arguments import arguments_of
from varshift.fixes._rewrite_chain import chain_of
from varshift.fixes._surgery import Refused


def norms_in_batch_mode(patient: Patient, sites: Sequence[SiteId]) -> list[SiteId]:
    """Those of some sites that are norms with running statistics, and normalise with the batch in evaluation.

    A finding names a norm by its place; all such norms of that module are meant.
    """
    flow = patient.capture.eval if patient.capture else None
    norms = [norm for norm in flow.norms if norm.tracked and norm.batch_statistics] if flow else []
    modules = {site.module for site in sites}
    return [norm.id for norm in norms if norm.id in sites or (norm.id.module in modules and norm.states)]


def follow_mode(patient: Patient, sites: Sequence[SiteId]) -> list[Edit]:
    """Edits that hand the mode of the module to the calls of some norms.

    Nobody has looked at their running statistics so far: where there are data, they are re-estimated.

    Raises:
        Refused: If a norm is not made by a call that takes the mode as an argument.
    """
    flow = patient.capture.eval if patient.capture else None
    if flow is None:
        return []
    edits: list[Edit] = []
    for norm in flow.norms:
        if norm.id not in sites:
            continue
        for index in norm.calls:
            way = chain_of(patient.network, flow.nodes[index].calls)
            if way is None:
                raise Refused(
                    f"the call of the norm {norm.id} ({norm.source}) cannot be reached: pass "
                    "training=self.training to it by hand."
                )
            path, chain = way
            edit = RewriteCall(norm.id, path, chain, NoiseAction("follow-mode"))
            edit.edited(patient.network)
            if not _takes_mode(patient, edit):
                raise Refused(
                    f"`{chain[-1].text}` ({norm.source}) has no argument for its mode: have the module pass "
                    "training=self.training on to the norm."
                )
            if edit not in edits:
                edits.append(edit)
    return [*edits, Recalibrate()] if patient.loader is not None else edits


def _takes_mode(patient: Patient, edit: RewriteCall) -> bool:
    """Whether the call of an edit says in which mode it is."""
    text, call = ClassDraft(user_class(editable(patient.network, edit.path))).find(edit.chain)
    return arguments_of(*text.called(call)).mode is not None
