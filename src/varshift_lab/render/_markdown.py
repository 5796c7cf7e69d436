"""Tables and verdicts as Markdown, with footnotes for what does not fit a cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from varshift_lab.render._claims import Verdict
from varshift_lab.render._lines import Line, lines
from varshift_lab.render._numbers import deviation_text, mean_text, short
from varshift_lab.render._values import Results
from varshift_lab.studies import Table


class _Notes:
    """Footnotes, numbered in the order of their first mention, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """What stands behind a figure that needs a note."""
        return f" [^{self._numbers.setdefault(text, len(self._numbers) + 1)}]" if text else ""

    def __iter__(self) -> Iterator[str]:
        return (f"[^{number}]: {_cell(text)}" for text, number in self._numbers.items())


def table_markdown(table: Table, results: Results) -> str:
    """A table with a title, its note, and footnotes for the paper's caveats and for what it ran on."""
    found, notes = lines(table, results), _Notes()
    headings = [
        *table.columns,
        table.unit,
        "standard deviation",
        "n",
        "seeds",
        "paper",
        "PFLOP per run",
        "seconds per run",
        "ran on",
    ]
    left = len(table.columns)
    rows = [[*line.labels, *_cells(line, notes)] for line in found]
    parts = [f"# {table.title}", *([table.note] if table.note else []), _grid(headings, rows, left)]
    missing = sum(len(line.missing) for line in found)
    if missing:
        wanted = sum(len(line.missing) + line.values.count for line in found)
        parts.append(f"**Incomplete**: {missing} of {wanted} values are missing.")
    if footnotes := "\n".join(notes):
        parts.append(footnotes)
    return "\n\n".join(parts) + "\n"


def _cells(line: Line, notes: _Notes) -> list[str]:
    count = str(line.values.count)
    if line.missing:
        count += f" of {line.values.count + len(line.missing)}"
    paper = ""
    if line.paper is not None:
        paper = f"{line.paper.value:g}{notes.mark(line.paper.caveat)}"
    when = " to ".join(line.dates)
    where = "; ".join(line.ran_on)
    return [
        mean_text(line.values) or "missing",
        deviation_text(line.values),
        count,
        seeds_text(line.seeds),
        paper,
        short(line.pflop),
        short(line.seconds),
        notes.mark(f"{where}; {when}").strip() if where else "",
    ]


def claims_markdown(title: str, verdicts: Sequence[Verdict]) -> str:
    """A table of verdicts."""
    headings = [
        "claim",
        "verdict",
        "difference",
        "standard error",
        "n",
        "lower",
        "higher",
        "margin",
        "source",
    ]
    rows = [
        [
            one.claim.text,
            outcome_text(one),
            mean_text(one.difference),
            short(one.difference.error, 2),
            str(one.difference.count),
            mean_text(one.lower),
            mean_text(one.higher),
            f"{one.claim.margin:g}",
            one.claim.source,
        ]
        for one in verdicts
    ]
    rule = (
        "The difference is `lower - higher` over pairs of equal seed. A claim is reproduced when the "
        "difference is below the margin by more than two standard errors, not reproduced when it is above it "
        "by as much, and undecided between."
    )
    return "\n\n".join((f"# {title}", rule, _grid(headings, rows, 2))) + "\n"


def outcome_text(verdict: Verdict) -> str:
    """The outcome, with what is missing for a better one."""
    if not verdict.missing:
        return verdict.outcome
    wanted = verdict.missing + verdict.difference.count
    return f"{verdict.outcome} ({verdict.missing} of {wanted} pairs missing)"


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds, runs of them shortened: ``0-4, 7``."""
    ordered, parts, start = sorted(seeds), [], 0
    for place, seed in enumerate(ordered):
        if place + 1 < len(ordered) and ordered[place + 1] == seed + 1:
            continue
        first = ordered[start]
        parts.append(f"{first}" if first == seed else f"{first}-{seed}")
        start = place + 1
    return ", ".join(parts)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table of cells padded to one width; the first columns to the left, figures to the right."""
    cells = [[_cell(text) for text in row] for row in (headings, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headings))]
    align = [str.ljust if column < left else str.rjust for column in range(len(headings))]
    ruler = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [[align[at](text, widths[at]) for at, text in enumerate(row)] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in (padded[0], ruler, *padded[1:]))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
