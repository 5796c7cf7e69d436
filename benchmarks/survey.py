"""`check` on other libraries' networks: what it captures, how long it takes, what it finds, what has changed.

Run by itself: ``python benchmarks/survey.py``. Libraries that are not installed are skipped and named. Each
network has a process of its own with a time limit, so that a crash or a hang is a row and not the end. Rows
go to ``benchmarks/.survey.jsonl`` (``--rows``), and a network that has one is not surveyed again.
``--compare BEFORE AFTER`` shows how the rows of two versions differ.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import varshift as vs
from _alone import append, load, row_of
from _survey_differences import differences
from _survey_rows import survey_row
from _surveyed import installed, networks
from _timing import table, write

HERE = Path(__file__).parent
SECONDS = 900


def survey(arguments: argparse.Namespace) -> None:
    """Surveys all networks that have no row yet."""
    rows = load(arguments.rows)
    torch.set_num_threads(1)  # a process that has woken other threads must not fork
    vs.check(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), shape=(2,))  # imports what it imports late
    for network in networks():
        if arguments.only not in network.name or _done(rows.get(network.name)):
            continue
        if installed(network.package):
            work = functools.partial(survey_row, network, arguments.data and network.with_data)
            row = row_of(network.name, work, arguments.seconds)
        else:
            row = {"name": network.name, "skipped": f"{network.package} is not installed"}
        rows[network.name] = row
        append(arguments.rows, row)
        print(" | ".join(_cells(row, {})), flush=True)


def _done(row: dict[str, Any] | None) -> bool:
    return row is not None and not row.keys() & {"skipped", "unbuildable"}


def _cells(row: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """One row of the table."""
    reason = row.get("skipped") or row.get("unbuildable") or row.get("died")
    if reason:
        return [row["name"], str(reason)[:80], *[""] * 7]
    free, data = row["free"], row.get("data")
    cells = [f"{row['name']}" if row["name"].endswith(row["model"]) else f"{row['name']} ({row['model']})"]
    cells += [str(row["size"]), _captured(free)]
    cells += [f"{free['seconds']:.1f}", f"{free['seconds'] / row['forward_seconds']:.1f}"]
    cells += [str(len(free.get("noises", ()))), str(len(free.get("norms", ()))), _codes(free)]
    cells.append("" if data is None else _codes(data))
    return cells


def _captured(result: dict[str, Any]) -> str:
    if "error" in result:
        return "crashed"
    text = " ".join(result["limits"])
    failed = [mode for mode in ("train", "eval") if f"captured in {mode} mode" in text]
    return f"{result['method']}, not in {failed[0]}" if failed else result["method"]


def _codes(result: dict[str, Any]) -> str:
    if "error" in result:
        return result["error"][:80].replace("|", "/").replace("\n", " ")
    counts = Counter(code for code, *_ in result["findings"])
    if not counts:
        return "none"
    return ", ".join(f"{code} x{count}" if count > 1 else code for code, count in sorted(counts.items()))


HEADER = [
    "network",
    "size",
    "captured",
    "seconds",
    "seconds / its forwards",
    "noise sites",
    "norms",
    "findings",
    "findings with data",
]


def versions() -> str:
    """The installed libraries."""
    from importlib.metadata import version

    names = sorted({network.package for network in networks()})
    return ", ".join(f"{name} {version(name.replace('_', '-'))}" for name in names if installed(name))


def page(rows: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> str:
    """The survey as Markdown."""
    crashed = [name for name, row in rows.items() if "died" in row or "error" in row.get("free", {})]
    body = [_cells(row, before) for row in rows.values()]
    if before:
        for cells, (name, row) in zip(body, rows.items(), strict=True):
            changes = differences(before[name], row) if name in before else ["not surveyed before"]
            cells.append("none" if not changes else "; ".join(changes))
    header = HEADER + (["differences"] if before else [])
    missing = [network.name for network in networks() if network.name not in rows]
    text = (
        "`check` without data, one thread, on networks of other libraries with random weights, rates of .1 "
        "where the constructor takes them, and statistics of three random batches "
        "(`python benchmarks/survey.py --data`, which checks some of them with data, too). Seconds are "
        "process time of the check, divided by those of one bare pass per mode of the same samples: 8, above "
        "128 pixels 4. timm has one network of each family, the smallest. "
        f"With {versions()}: {len(rows)} networks, {len(crashed)} crashes."
    )
    if missing:
        text += f" Not surveyed: {', '.join(missing)}."
    if before:
        text += " Differences from an earlier version: sites, norms, findings, and figures beyond 1e-6."
    return f"{text}\n\n{table(header, body)}"


def main() -> None:
    """Surveys, or compares two surveys."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=HERE / ".survey.jsonl", help="file of rows")
    parser.add_argument("--only", default="", help="networks whose name contains this; writes no page")
    parser.add_argument("--data", action="store_true", help="check about forty of them with data, too")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit for one network")
    parser.add_argument("--before", type=Path, help="rows of an earlier version, for a column of differences")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="survey nothing")
    arguments = parser.parse_args()
    if arguments.compare:
        before, after = map(load, arguments.compare)
        for name in before.keys() & after.keys():
            for difference in differences(before[name], after[name]):
                print(f"{name}: {difference}")
        return
    survey(arguments)
    if not arguments.only:
        before = load(arguments.before) if arguments.before else {}
        write("survey", "A survey of other libraries' networks", page(load(arguments.rows), before))


if __name__ == "__main__":
    main()
