"""Other networks that the weights come from: the source of an average or a copy, clients, parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varshift.evidence._provider import NotMade, Provider
from varshift.evidence._subject import Subject
from varshift.evidence._types import Evidence, Kind
from varshift.probe import compare_networks

_UNLIKE = "no norm of the reference corresponds to one of the model"


class ReferenceProvider(Provider):
    """Reads the references; nothing of them is run or written."""

    kind = "reference"
    reads = ("references",)
    makes = "which weights and statistics are those of the other networks, and which are averages of them"
    inputs = "other networks (`reference=`)"
    cost = "no pass"

    def make(
        self, subject: Subject, evidence: Evidence, wanted: frozenset[Kind], limits: list[str]
    ) -> Mapping[str, Any]:
        """Compares the network with the references."""
        compared = compare_networks(subject.network, subject.norms, subject.references)
        if not compared.norms and not compared.states:
            limits.append(
                "The reference was not compared: none of its norms has the name and the shape of one of the "
                "model's, or lies where one does in a part that both have."
            )
            raise NotMade(_UNLIKE)
        return {"references": compared}
