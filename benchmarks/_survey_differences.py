"""What two rows of the survey, of two versions of varshift, disagree about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

_TOLERANCE = 1e-6  # relative; figures that differ by less are equal but for the order of sums


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Plain sentences, the gravest first; none when both versions say the same."""
    return list(_differences(before, after))


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for key in ("skipped", "unbuildable", "died"):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)!r} before, {after.get(key)!r} now"
    if before.get("model") != after.get("model") or before.get("inputs") != after.get("inputs"):
        yield f"not the same network: {before.get('model')} {before.get('inputs')} before"
    for part, prefix in (("free", ""), ("data", "with data: ")):
        if part in before and part in after:
            yield from (prefix + text for text in _of_checks(before[part], after[part]))


def _of_checks(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    if ("error" in before) != ("error" in after):
        yield f"raised {before.get('error')!r} before, {after.get('error')!r} now"
    if after["changed"]:
        yield f"CHANGED {', '.join(after['changed'][:5])} ({len(after['changed'])} in all)"
    if "error" in before or "error" in after:
        return
    yield from _findings(before["findings"], after["findings"])
    yield from _listed("noise site", before["noises"], after["noises"])
    names = [[name, norm["cls"], str(norm["reached"])] for name, norm in before["norms"].items()]
    yield from _listed(
        "norm", names, [[name, norm["cls"], str(norm["reached"])] for name, norm in after["norms"].items()]
    )
    yield from _figures(before["norms"], after["norms"])
    yield from _gaps(before["gap"], after["gap"])


def _findings(before: list[list[Any]], after: list[list[Any]]) -> Iterator[str]:
    """Two are the same where code and severity are, and the first place of either is a place of the other."""
    lost = [old for old in before if not any(_same_finding(old, new) for new in after)]
    gained = [new for new in after if not any(_same_finding(old, new) for old in before)]
    yield from _listed("finding", lost, gained)


def _same_finding(old: list[Any], new: list[Any]) -> bool:
    code, first, severity, *more = old
    new_code, new_first, new_severity, *new_more = new
    meet = first in (new_more[0] if new_more else [new_first]) or new_first in (more[0] if more else [first])
    return meet and (code, severity) == (new_code, new_severity)


def _listed(kind: str, before: list[list[str]], after: list[list[str]]) -> Iterator[str]:
    old, new = (Counter(tuple(map(str, entry[:6])) for entry in entries) for entries in (before, after))
    for label, gone in (("lost", old - new), ("new", new - old)):
        if gone:
            shown = "; ".join(" ".join(entry[:3]) for entry in sorted(gone)[:4])
            yield f"{kind}s {label}: {sum(gone.values())} ({shown})"


def _figures(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    shared = [name for name in before if name in after]
    for figure in (key for key in next(iter(before.values()), {}) if key not in ("cls", "reached")):
        pairs = {name: (before[name].get(figure), after[name].get(figure)) for name in shared}
        lost = [name for name, (old, new) in pairs.items() if old is not None and new is None]
        gained = [name for name, (old, new) in pairs.items() if old is None and new is not None]
        gaps = {name: _apart(*pair) for name, pair in pairs.items() if None not in pair}
        apart = {name: gap for name, gap in gaps.items() if gap > _TOLERANCE}
        if lost:
            yield f"{figure} now null at {len(lost)} norms ({lost[0]}: {pairs[lost[0]][0]:.4g} before)"
        if gained:
            example = f"{gained[0]}: {pairs[gained[0]][1]:.4g} now"
            yield f"{figure} no longer null at {len(gained)} norms ({example})"
        if apart:
            worst = max(apart, key=apart.__getitem__)
            old, new = pairs[worst]
            yield (
                f"{figure} differs at {len(apart)} of {len(gaps)} norms, most by {apart[worst]:.2g} "
                f"({worst}: {old:.6g} before, {new:.6g} now)"
            )


def _gaps(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Iterator[str]:
    if (before is None) != (after is None):
        yield f"gap: {'none' if before is None else 'one'} before, {'none' if after is None else 'one'} now"
    if before is None or after is None:
        return
    if before["metric"] != after["metric"]:
        yield f"metric {before['metric']} before, {after['metric']} now"
    for kind in ("states", "steps"):
        for name, old in before[kind].items():
            new = after[kind].get(name)
            if (old is None) != (new is None) or (old is not None and _apart(old, new) > _TOLERANCE):
                yield f"{kind[:-1]} {name}: {old} before, {new} now"


def _apart(old: float, new: float) -> float:
    return abs(new - old) / max(abs(old), abs(new), 1e-12)
