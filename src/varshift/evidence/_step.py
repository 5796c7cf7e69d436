"""A training step of the user's own, run on a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.model import Rehearsal, Unsafe, short_message_of
from varshift.probe import watch_step


class StepProvider(Provider):
    """Runs two training steps on copies of the model and of all that the step holds."""

    kind = "step"
    reads = ("step", "loader")
    makes = (
        "what a training step does: updates of every norm, on what and at which weights, modes, frozen parts"
    )
    inputs = "a loader and a training step (`step=`)"
    cost = "two training steps on copies of the network and its optimiser"

    def batches(self, subject: Subject) -> int:
        """One for each step."""
        return 2

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Rehearses the step; one that cannot be run without a trace is named in the limits."""
        assert subject.step is not None
        subject.announce("rehearsing a training step")
        rehearsal = Rehearsal(subject.network, subject.step, seed=subject.seed)
        try:
            with rehearsal:
                try:
                    facts = watch_step(rehearsal, subject.calls, subject.recognised)
                except Exception as error:  # whatever the user's own code raises
                    limits.append(
                        f"The training step failed on a copy of the model: {short_message_of(error)}."
                    )
                    raise NotMade("it failed") from error
                touched = rehearsal.touched()
        except Unsafe as reason:
            limits.append(f"The training step was not run: it {reason}, and could leave a trace.")
            raise NotMade("it could not be run without a trace") from reason
        if touched is not None:
            limits.append(
                f"The training step changes {touched} of the model by ways of its own, besides the copy that "
                "it is handed: that was put back, and what the step does is not known."
            )
            raise NotMade("it does not act on the model that it is handed")
        return {"step": facts}
