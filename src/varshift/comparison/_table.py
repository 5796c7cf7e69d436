"""A comparison as a table of texts and as sentences."""

from __future__ import annotations

import math

from varshift.comparison._comparison import Comparison, VariantRow
from varshift.report import counted, figure, percent, signed

_SHOWN = 8  # pairs beyond those with the reference that are written out


def headings(comparison: Comparison) -> tuple[str, ...]:
    """The headings of the table."""
    accuracy = comparison.measure != "accuracy" and any(
        row.accuracy is not None for row in comparison.variants
    )
    return (
        "variant",
        f"{comparison.measure} (spread)",
        f"minus {comparison.reference} (error)",
        *(("accuracy",) if accuracy else ()),
        "gap",
        "seconds",
        "seeds",
    )


def cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """The cells of the table, a row for each variant with results."""
    accuracy = "accuracy" in headings(comparison)
    rows = []
    for row in comparison.variants:
        if not row.values:
            continue
        rows.append(
            (
                row.name,
                _with_error(row.mean, row.spread),
                _difference(comparison, row),
                *((percent(row.accuracy),) if accuracy else ()),
                signed(row.gap),
                figure(row.seconds),
                str(len(row.seeds)),
            )
        )
    return rows


def title_of(comparison: Comparison) -> str:
    """What is compared."""
    best = "higher" if comparison.higher else "lower"
    return (
        f"{comparison.target}: {counted(len(comparison.variants), 'variant')} over "
        f"{counted(len(comparison.seeds), 'seed')}, by {comparison.measure} in eval() on the "
        f"{comparison.judged_on} ({best} is better)"
    )


def sentences(comparison: Comparison) -> list[str]:
    """The verdicts in words: those with the reference, then the others; what is not there and why."""
    own = [pair for pair in comparison.pairs if comparison.reference in (pair.first, pair.second)]
    others = [pair for pair in comparison.pairs if pair not in own]
    differ = [pair for pair in others if pair.outcome == "differ"]
    lines = [pair.text for pair in (*own, *differ[:_SHOWN])]
    if len(differ) > _SHOWN:
        lines.append(f"{len(differ) - _SHOWN} more pairs differ; `pairs` has them all.")
    rest = len(others) - len(differ)
    if rest:
        lines.append(
            f"{'The other pair' if rest == 1 else f'The other {rest} pairs'} cannot be told apart; `pairs` "
            "says how many seeds would do."
        )
    lines += [f"{row.name}: {_state(row)}" for row in comparison.variants if row.note]
    return [*lines, *comparison.notes]


def text_of(comparison: Comparison) -> str:
    """The whole comparison as plain text."""
    grid = [headings(comparison), *cells(comparison)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
    lines = [title_of(comparison), ""]
    for row in grid:
        first, *others = row
        padded = [first.ljust(widths[0])]
        padded += [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, "", *sentences(comparison)])


def _state(row: VariantRow) -> str:
    words = {"unavailable": "cannot be made for this network: ", "failed": "failed: ", "stopped": "stopped: "}
    return words.get(row.state, "") + row.note


def _difference(comparison: Comparison, row: VariantRow) -> str:
    if row.name == comparison.reference:
        return ""
    try:
        pair = comparison.between(row.name, comparison.reference)
    except KeyError:
        return ""
    if pair.difference is None:
        return ""
    sign = 1 if pair.first == row.name else -1
    text = _with_error(sign * pair.difference, pair.error, sign=True)
    return f"{text} *" if pair.outcome == "differ" else text


def _with_error(value: float | None, error: float | None, *, sign: bool = False) -> str:
    """A figure to the second digit of its error."""
    if value is None:
        return ""
    if error is None or not error > 1e-9 * abs(value):
        return signed(value) if sign else figure(value)
    places = min(max(1 - math.floor(math.log10(error)), 0), 8)
    return f"{value:{'+' if sign else ''}.{places}f} ({error:.{places}f})"
