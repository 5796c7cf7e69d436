"""Plans made with one version of timm, applied with another.

Run by itself: ``python benchmarks/plans.py --old FOLDER``, where FOLDER holds the older timm (``pip install
--no-deps --target FOLDER timm==1.0.20``). All noise of a network of each family is removed, and replaced by
uniform noise, with the older version; the plan is applied to the network of the installed version. Captures
before and after show what it changed there. Rows go to ``benchmarks/.plans.jsonl`` (``--rows``); a network
that has one is not tried again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import varshift as vs
from _alone import append
from _plans_made import SAMPLES, function_of, noises
from _surveyed_network import CLASSES
from _surveyed_zoo import smallest_of_timm
from _timing import table, write
from varshift.fixes import prove
from varshift.flow import capture
from varshift.integrations import declare_torchvision_operators

HERE = Path(__file__).parent
CURES: dict[str, Any] = {"removed": ["remove-noise"], "uniform": {"swap-noise": {"to": "uniform"}}}


def titles() -> list[str]:
    """The smallest network of every family of the installed version; the older one may not have all."""
    declare_torchvision_operators()
    import timm

    return [smallest_of_timm(family) for family in timm.list_modules()]


def applied(row: dict[str, Any]) -> dict[str, Any]:
    """What a plan does to the network of the installed version."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(row["title"], num_classes=CLASSES, **row["settings"])
    example = torch.randn(SAMPLES, 3, row["size"], row["size"])
    before = capture(model, example)
    result = vs.apply_plan(model, row["plan"], strict=False)
    proof = prove(before, capture(result.model, example), [change.site for change in result.changes])
    sites = noises(before)
    wrong = list(proof.unexpected)
    done = []
    for change in result.changes:
        name = str(change.site)
        site = sites.get(name)
        if site is None:
            wrong.append(f"{name} is no noise here")
        elif not _same(row["sites"][name], [site.kind, site.rate, function_of(site)]):
            wrong.append(
                f"{name} was {row['sites'][name]}, and is {site.kind}, {site.rate}, {function_of(site)}"
            )
        elif change.site in proof.kept:
            wrong.append(f"{name} is as it was")
        else:
            done.append(name)
    return {
        "new": timm.__version__,
        "done": done,
        "wrong": wrong,
        "refused": [str(failure) for failure in result.failures],
        "gone": [name for name in row["planned"] if name not in sites],
    }


def _same(old: list[Any], new: list[Any]) -> bool:
    """The same kind of noise, as strong, made by the same function."""
    rates = [math.nan if rate is None else rate for rate in (old[1], new[1])]
    equal = old[1] is new[1] if None in (old[1], new[1]) else math.isclose(*rates, abs_tol=1e-6)
    return old[0] == new[0] and old[2] == new[2] and equal


def try_plans(arguments: argparse.Namespace) -> None:
    """Makes and applies all plans that have no row yet."""
    declare_torchvision_operators()
    torch.set_num_threads(1)
    rows = load(arguments.rows)
    maker = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / "_plans_made.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{arguments.old}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert maker.stdin is not None
    assert maker.stdout is not None
    for title in titles():
        for column, cures in CURES.items():
            if (title, column) in rows:
                continue
            task = {"title": title, "cures": cures}
            maker.stdin.write(json.dumps(task) + "\n")
            maker.stdin.flush()
            row = {"column": column, **json.loads(maker.stdout.readline())}
            if "error" not in row and row["planned"]:
                try:
                    row |= applied(row)
                except Exception as error:  # a crash is what the benchmark looks for
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
            rows[title, column] = row
            append(arguments.rows, row)
            print(" | ".join(_cells(row)), flush=True)
    maker.stdin.close()
    maker.wait()


def load(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a file by title and column."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["title"], row["column"]): row for row in map(json.loads, lines)}


def _cells(row: dict[str, Any]) -> list[str]:
    name = [row["title"], row["column"]]
    if "done" not in row:
        return [*name, *[""] * 5, _plain(row.get("error") or "nothing to do")]
    numbers = [
        len(row["sites"]),
        len(row["planned"]),
        len(row["done"]),
        len(row["refused"]),
        len(row["wrong"]),
    ]
    reasons = Counter(map(_plain, [*row["wrong"], *row["refused"]]))
    shown = "; ".join(reason for reason, _ in reasons.most_common(3))
    return [*name, *map(str, numbers), shown + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")]


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


def page(rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The table as Markdown."""
    text = []
    for column in CURES:
        tried = [row for row in rows.values() if row["column"] == column and "done" in row]
        planned, done = (sum(len(row[key]) for row in tried) for key in ("planned", "done"))
        wrong = sum(len(row["wrong"]) for row in tried)
        versions = sorted({f"{row['timm']} to {row['new']}" for row in tried})
        text.append(
            f"{column.capitalize()}: {len(tried)} networks, timm {', '.join(versions)}: {done} of {planned} "
            f"planned places done ({done / max(planned, 1):.1%}), {wrong} wrong."
        )
    waiting = [title for title in titles() if not any((title, column) in rows for column in CURES)]
    if waiting:
        text.append(f"Not reached: {', '.join(waiting)}.")
    header = ["network", "noise", "sites", "planned", "done", "refused edits", "wrong", "reasons"]
    explanation = (
        "Plans made with an older timm, applied with the installed one (`python benchmarks/plans.py --old "
        "FOLDER`): all noise removed, and replaced by uniform noise of equal variance. Done: the place of "
        "this name is noise of the same kind, rate and function in both versions, and captures before and "
        "after show that it changed. Wrong: anything else that changed. Refused: the edit says that its "
        "place is not there, or is another one by now. "
    )
    return f"{explanation}{' '.join(text)}\n\n{table(header, list(map(_cells, rows.values())))}"


def main() -> None:
    """Tries the plans, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, help="folder with the older timm")
    parser.add_argument("--rows", type=Path, default=HERE / ".plans.jsonl", help="file of rows")
    arguments = parser.parse_args()
    if arguments.old is not None:
        try_plans(arguments)
    write("plans", "Plans across versions of a library", page(load(arguments.rows)))


if __name__ == "__main__":
    main()
