"""A table as CSV: every figure with all its digits, everything on its own line."""

from __future__ import annotations

import csv
import io

from varshift_lab.render._lines import lines
from varshift_lab.render._numbers import plain
from varshift_lab.render._values import Results
from varshift_lab.studies import Table


def to_csv(table: Table, results: Results) -> str:
    """The table with one line per row and a first line of headings."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *table.columns,
            "quantity",
            "n",
            f"mean ({table.unit})",
            "standard deviation",
            "seeds",
            "missing seeds",
            "paper",
            "paper caveat",
            "PFLOP per run",
            "device and versions",
            "dates",
            "seconds per run",
        ]
    )
    for row, line in zip(table.rows, lines(table, results), strict=True):
        writer.writerow(
            [
                *line.labels,
                row.series.quantity,
                line.values.count,
                plain(line.values.mean),
                plain(line.values.deviation),
                " ".join(map(str, line.seeds)),
                " ".join(map(str, line.missing)),
                plain(line.paper.value) if line.paper is not None else "",
                line.paper.caveat if line.paper is not None else "",
                plain(line.pflop),
                "; ".join(line.ran_on),
                " to ".join(line.dates),
                plain(round(line.seconds, 3)) if line.seconds is not None else "",
            ]
        )
    return text.getvalue()
