"""What a norm's input depends on: the parameters upstream of it, and whether they are another network's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.evidence import Evidence

if TYPE_CHECKING:
    from varshift.flow import Flow


def parameters_upstream(evidence: Evidence) -> dict[str, frozenset[str]]:
    """For every norm that was captured, the parameters that its input depends on."""
    found: dict[str, frozenset[str]] = {}
    for flow in (evidence.train, evidence.eval):
        if flow is not None:
            found = {**_parameters_before(flow), **found}
    return found


def _parameters_before(flow: Flow) -> dict[str, frozenset[str]]:
    names = [node.target for node in flow.nodes if node.kind == "parameter" and node.target]
    bit = {name: 1 << position for position, name in enumerate(names)}
    before: list[int] = []
    for node in flow.nodes:
        bits = bit.get(node.target or "", 0) if node.kind == "parameter" else 0
        for index in node.inputs:
            bits |= before[index]
        before.append(bits)
    found = {}
    for norm in flow.norms:
        bits = 0
        for call in norm.calls:
            for index in flow.nodes[call].inputs:
                # Its own scale and offset act after its statistics.
                if flow.nodes[index].kind != "parameter":
                    bits |= before[index]
        found[norm.name] = frozenset(name for name in names if bits & bit[name])
    return found


def drifted(evidence: Evidence) -> tuple[str, ...]:
    """The norms whose statistics differ from a reference's although all weights upstream are the same.

    So the same weights saw other data: a frozen backbone whose norms were left awake, or another process of
    the same training.
    """
    references = evidence.references
    if references is None:
        return ()
    upstream = parameters_upstream(evidence)
    names = []
    for name, norm in references.norms.items():
        before = upstream.get(name)
        alike = [
            number
            for number, differing in enumerate(references.differing)
            if not (differing if before is None else differing & before)
        ]
        if alike and not set(alike) & set(norm.equal):
            names.append(name)
    return tuple(names)
