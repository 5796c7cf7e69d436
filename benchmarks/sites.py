"""Which noise sites of other libraries' networks can be removed and replaced, and by which method.

Run by itself: ``python benchmarks/sites.py``. Every network is built with noise rates switched on. The steps
of `varshift.fix` remove all of its noise, then put uniform noise in its place; captures of the results are
counted. Libraries that are not installed are skipped and named. Each network has a process of its own with a
time limit. Rows go to ``benchmarks/.sites.jsonl`` (``--rows``); a network that has one is not tried again.
"""

from __future__ import annotations

import argparse
import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import varshift as vs
from _alone import append, load, row_of
from _site_networks import networks
from _site_trials import site_row
from _surveyed import installed
from _timing import table, write

HERE = Path(__file__).parent
SECONDS = 600
METHODS = ("module", "attribute", "call")
TRIALS = ("removed", "swapped")
HEADER = ["network", "size", "noise sites", "removed", "by module, attribute, call", "swapped for Uout"]
HEADER += ["by module, attribute, call", "same in eval", "cost", "left, and other draws"]


def survey(arguments: argparse.Namespace) -> None:
    """Tries all networks that have no row yet."""
    rows = load(arguments.rows)
    torch.set_num_threads(1)  # a process that has woken other threads must not fork
    vs.fix(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), shape=(2,), cures=["remove-noise"])
    for network in networks():
        if arguments.only not in network.name or done(rows.get(network.name)):
            continue
        if installed(network.package):
            row = row_of(network.name, functools.partial(site_row, network), arguments.seconds)
        else:
            row = {"name": network.name, "skipped": f"{network.package} is not installed"}
        rows[network.name] = row
        append(arguments.rows, row)
        print(" | ".join(cells(row)), flush=True)


def done(row: dict[str, Any] | None) -> bool:
    """Whether a row needs no second trial."""
    return row is not None and not row.keys() & {"skipped", "unbuildable", "died"}


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""
    reason = row.get("skipped") or row.get("unbuildable") or row.get("died")
    if reason:
        return [row["name"], "", "", *[""] * 6, _plain(str(reason)[-200:])]
    title = row["model"]
    name = row["name"] if row["name"].endswith(title) else f"{row['name']} ({title})"
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(row["no_dropout"].items()))
    if not row["sites"]:
        return [name, str(row["size"]), "0", *[""] * 6, others]
    trials = {what: row[what] for what in TRIALS}
    counts = [text for trial in trials.values() for text in (str(trial["done"]), _methods(trial))]
    same = {trial.get("same_in_eval") for trial in trials.values()}
    equal = "no" if False in same else "yes" if True in same else "random in eval"
    cost = max(trial.get("seconds", 0) for trial in trials.values()) / row["unit_seconds"]
    left = [f"not {what}: {'; '.join(_left(trial))}" for what, trial in trials.items() if _left(trial)]
    last = _plain(" ".join([*left, others]).strip()[:400])
    return [name, str(row["size"]), str(row["sites"]), *counts, equal, f"{cost:.1f}", last]


def _methods(trial: dict[str, Any]) -> str:
    return ", ".join(str(trial.get("methods", {}).get(method, 0)) for method in METHODS)


def _left(trial: dict[str, Any]) -> list[str]:
    return [trial["error"]] if "error" in trial else trial.get("left", [])


def _plain(text: str) -> str:
    text = text.replace("\n", " ").replace("|", "/")
    return re.sub(
        r"(?<=[ (])/\S*/(?=(transformers|monai|timm|torchvision)/)", "", text
    )  # where they are installed


def _share(rows: list[dict[str, Any]], what: str) -> str:
    done, sites = sum(row[what]["done"] for row in rows), sum(row["sites"] for row in rows)
    return f"{done} ({done / max(sites, 1):.2%})"


def page(rows: dict[str, dict[str, Any]], names: list[str]) -> str:
    """The trials as Markdown.

    Args:
        rows: The rows by name.
        names: The networks that there are.
    """
    tried = [row for row in rows.values() if row.get("sites")]
    text = (
        "The steps of `varshift.fix` (plan, surgery on a copy, a second capture that proves that nothing "
        "else changed) on networks of other libraries with noise rates switched on: once with the cure "
        '"remove-noise", once with "swap-noise" to uniform noise with a half-width of 0.25. Sampling, '
        "permutations and random slopes are listed as other draws, not as sites. Cost is process time of the "
        "dearer cure over that of one deepcopy and one capture. "
        f"{len(tried)} networks with noise."
    )
    for what in TRIALS:
        methods = [sum(row[what].get("methods", {}).get(method, 0) for row in tried) for method in METHODS]
        text += f" {what.capitalize()}: {_share(tried, what)}, by another module {methods[0]}, by an "
        text += f"attribute {methods[1]}, by a rewritten call {methods[2]}."
    missing = [name for name, row in rows.items() if row.keys() & {"died", "unbuildable", "skipped"}]
    if missing:
        text += f" Not tried, reasons in the table: {', '.join(missing)}."
    waiting = [name for name in names if name not in rows]
    if waiting:
        text += f" Not reached yet: {', '.join(waiting)}."
    libraries = []
    for library in dict.fromkeys(row["name"].partition("/")[0] for row in tried):
        own = [row for row in tried if row["name"].startswith(f"{library}/")]
        sites = sum(row["sites"] for row in own)
        libraries.append([library, str(len(own)), str(sites), *(_share(own, what) for what in TRIALS)])
    summary = table(["library", "networks", "sites", *TRIALS], libraries)
    return f"{text}\n\n{summary}\n\n{table(HEADER, [cells(row) for row in rows.values()])}"


def main() -> None:
    """Tries the networks and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=HERE / ".sites.jsonl", help="file of rows")
    parser.add_argument("--only", default="", help="networks whose name contains this; writes no page")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit for one network")
    parser.add_argument("--page", action="store_true", help="only write the page of the rows that there are")
    arguments = parser.parse_args()
    if not arguments.page:
        survey(arguments)
    if not arguments.only:
        names = [network.name for network in networks()]
        rows = load(arguments.rows)
        ordered = {name: rows[name] for name in names if name in rows}
        write("sites", "The noise sites of other libraries' networks", page(ordered, names))


if __name__ == "__main__":
    main()
