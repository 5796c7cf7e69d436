"""Which cause `check` names first in networks with planted faults, and how it divides the gap between two.

Run by itself: ``python benchmarks/diagnosis.py``. Faults are planted in small networks of three families on
three data sets, over three seeds: single ones, mixtures of two whose shares are measured by taking each away,
and sound networks. Each trial is a line of ``benchmarks/.diagnosis.jsonl`` (``--rows``), and one that has a
line is not run again, so that the command goes on where it was stopped. CIFAR-10 and Fashion-MNIST are read
from the folder ``VARSHIFT_DATA``; settings whose data are missing are skipped and counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import random
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import varshift as vs
from _diagnosis_faults import FAULTS, SOUND, Fault, Subject
from _diagnosis_mixtures import MIXTURES, Ingredient, Truth, mixture
from _diagnosis_networks import DATA, FAMILIES, Setting
from _timing import RESULTS, table
from varshift.rules import thresholds

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
BATCHES = 12
LOUD = ("error", "warning")


@dataclass(frozen=True)
class Trial:
    """One network to check: a fault, a mixture or a sound network in one setting."""

    kind: str
    name: str
    setting: Setting
    plan: Fault | tuple[Ingredient, Ingredient]

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.kind} | {self.name} | {self.setting.seed}"


def trials() -> Iterator[Trial]:
    """All trials, one seed after the other, the three kinds in turn."""
    for seed in SEEDS:
        kinds = (list(_faults(seed)), list(_mixtures(seed)), list(_sound(seed)))
        for several in itertools.zip_longest(*kinds):
            yield from filter(None, several)


def _faults(seed: int) -> Iterator[Trial]:
    for number, plan in enumerate(FAULTS):
        places = list(itertools.product(plan.families, DATA))
        family, data = places[(number + 4 * seed) % len(places)]
        yield Trial("fault", plan.name, Setting(family, data, seed), plan)


def _mixtures(seed: int) -> Iterator[Trial]:
    places = list(itertools.product(FAMILIES, DATA))
    for number, (one, two) in enumerate(MIXTURES):
        family, data = places[(number + 4 * seed) % len(places)]
        yield Trial("mixture", f"{one.name} and {two.name}", Setting(family, data, seed), (one, two))


def _sound(seed: int) -> Iterator[Trial]:
    for data in DATA:
        for number, plan in enumerate(SOUND):
            family = FAMILIES[(number + seed + DATA.index(data)) % len(FAMILIES)]
            yield Trial("sound", f"{plan.name}, {data}", Setting(family, data, seed), plan)


def run(trial: Trial) -> dict[str, Any]:
    """The row of one trial."""
    setting = trial.setting
    row: dict[str, Any] = {
        "key": trial.key,
        "kind": trial.kind,
        "name": trial.name,
        "family": setting.family,
        "data": setting.data,
        "seed": setting.seed,
    }
    try:
        subject, truths = _built(trial)
    except FileNotFoundError as error:
        return {**row, "skipped": str(error)}
    _seed(setting.seed)
    start = time.perf_counter()
    try:
        report = vs.check(
            subject.model, subject.loader, max_batches=BATCHES, seed=setting.seed, **subject.options
        )
    except Exception as error:  # a crash is a row and not the end
        return {**row, "crash": f"{type(error).__name__}: {error}"}
    row["seconds"] = round(time.perf_counter() - start, 2)
    return {**row, **_outcome(report), **_judged(trial, report, truths)}


def _built(trial: Trial) -> tuple[Subject, dict[str, Truth]]:
    _seed(trial.setting.seed)
    if isinstance(trial.plan, Fault):
        return trial.plan.build(trial.setting), {}
    return mixture(*trial.plan, trial.setting)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _outcome(report: vs.Report) -> dict[str, Any]:
    verdict = report.verdict
    steps = {step.cause: (step.delta, step.stderr) for step in report.gap.steps} if report.gap else {}
    return {
        "state": verdict.state if verdict else None,
        "train": verdict.train if verdict else None,
        "deployed": verdict.deployed if verdict else None,
        "explained": verdict.code if verdict else None,
        "unexplained": verdict.unexplained if verdict else None,
        "findings": [(finding.severity, finding.code) for finding in report.findings],
        "steps": steps,
    }


def first(row: dict[str, Any]) -> str | None:
    """The code of the first error or warning; where no step costs a twentieth of the loss, of any finding."""
    loud = next((code for severity, code in row["findings"] if severity in LOUD), None)
    if loud is not None or row["kind"] == "sound" or _costly(row):
        return loud
    return next((code for _, code in row["findings"]), None)


def _costly(row: dict[str, Any]) -> bool:
    costs = [delta for delta, _ in row["steps"].values()]
    if None in costs or row["deployed"] is None:
        return True
    floor = max(thresholds.COST_WARNING * row["deployed"], thresholds.LOSS_NATS)
    return max(costs, default=0.0) > floor


def _judged(trial: Trial, report: vs.Report, truths: dict[str, Truth]) -> dict[str, Any]:
    if isinstance(trial.plan, Fault):
        return {"codes": sorted(trial.plan.codes)}
    steps = {step.cause: step for step in report.gap.steps} if report.gap else {}
    shares = {}
    for item in trial.plan:
        truth, step = truths[item.step], steps.get(item.step)
        shares[item.step] = {
            "codes": sorted(item.codes),
            "alone": truth.alone,
            "on_top": truth.on_top,
            "measured": step.delta if step else None,
            "stderr": step.stderr if step else None,
        }
    return {"shares": shares}


# ---- results ------------------------------------------------------------------------------------------
def attributed(share: dict[str, Any]) -> bool | None:
    """Whether a step is what its fault costs, within two standard errors of either order of removal."""
    measured, error = share["measured"], share["stderr"]
    ends = (share["alone"], share["on_top"])
    if measured is None or error is None or not all(map(math.isfinite, (measured, *ends))):
        return None
    return min(ends) - 2 * error <= measured <= max(ends) + 2 * error


def page(rows: list[dict[str, Any]], command: str) -> str:
    """The results as Markdown."""
    ran = [row for row in rows if "findings" in row]
    kinds = {kind: [row for row in ran if row["kind"] == kind] for kind in ("fault", "mixture", "sound")}
    crashes = [row for row in rows if "crash" in row]
    parts = [
        "# Which cause is named first",
        _provenance(rows, command),
        "Faults are planted in small networks (dense, plain convolutions, residual) on digits, Fashion-MNIST "
        "and CIFAR-10 of at most 16 pixels a side, trained for a few epochs, each in another family and data "
        "set for each seed. They are of the kinds that the rules are made for: what no rule knows is not "
        "counted here. A cause is named first where the first error or warning has one of its codes; where "
        "no step of the gap costs a twentieth of the loss or a hundredth of a nat, so that nothing should be "
        "more than advice, where the first finding has.",
        _totals(kinds, crashes, len(rows)),
        "## Planted faults",
        _fault_table(kinds["fault"]),
        "## Mixtures of two",
        "What a fault costs is measured with torch alone, by taking it away: from the network with both, and "
        "from the one with it alone. A share is attributed where the step of the gap lies between the two, "
        "give or take two of its standard errors. The larger fault is to be named first.",
        _mixture_table(kinds["mixture"]),
        "## Sound networks",
        _sound_table(kinds["sound"]),
    ]
    if crashes:
        parts += ["## Crashes", "\n".join(f"- {row['key']}: {row['crash']}" for row in crashes)]
    return "\n\n".join(parts) + "\n"


def _provenance(rows: list[dict[str, Any]], command: str) -> str:
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    ran = f"{len(rows)} of {sum(1 for _ in trials())} trials"
    return f"`{command}`; commit {commits}; {versions}; {datetime.now(UTC):%Y-%m-%d}; seeds {seeds}; {ran}."


def _totals(kinds: dict[str, list[dict[str, Any]]], crashes: list[dict[str, Any]], count: int) -> str:
    right = [first(row) in row["codes"] for row in kinds["fault"]]
    larger = [first(row) in _larger(row)["codes"] for row in kinds["mixture"]]
    either = [bool(_codes_of_mixture(row) & {first(row)}) for row in kinds["mixture"]]
    shares = [
        result
        for row in kinds["mixture"]
        for share in row["shares"].values()
        if (result := attributed(share)) is not None
    ]
    false = [first(row) is not None for row in kinds["sound"]]
    seconds = [row["seconds"] for several in kinds.values() for row in several]
    rows = [
        ["planted fault named first", _rate(right)],
        ["mixture: the larger fault named first", _rate(larger)],
        ["mixture: either fault named first", _rate(either)],
        ["mixture: share of the gap attributed within its error", _rate(shares)],
        ["sound networks with an error or a warning", _rate(false)],
        ["crashes", f"{len(crashes)} of {count}"],
        ["seconds of a check, median", f"{statistics.median(seconds):.1f}" if seconds else "-"],
    ]
    return table(["figure", "value"], rows)


def _rate(results: list[bool]) -> str:
    return f"{sum(results)} of {len(results)} ({sum(results) / len(results):.0%})" if results else "not run"


def _larger(row: dict[str, Any]) -> dict[str, Any]:
    return max(row["shares"].values(), key=lambda share: share["alone"] + share["on_top"])


def _codes_of_mixture(row: dict[str, Any]) -> set[str]:
    return {code for share in row["shares"].values() for code in share["codes"]}


def _fault_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for name, several in _by_name(rows).items():
        right = sum(first(row) in row["codes"] for row in several)
        named = ", ".join(f"{first(row) or 'nothing'} ({row['family']}, {row['data']})" for row in several)
        losses = ", ".join(f"{_number(row['train'])} to {_number(row['deployed'])}" for row in several)
        lines.append([name, " or ".join(several[0]["codes"]), f"{right} of {len(several)}", named, losses])
    return table(["fault", "its code", "first", "named first", "loss in training to loss as deployed"], lines)


def _mixture_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for name, several in _by_name(rows).items():
        larger = sum(first(row) in _larger(row)["codes"] for row in several)
        named = ", ".join(first(row) or "nothing" for row in several)
        truths, results = [], []
        for row in several:
            for step, share in row["shares"].items():
                ends = f"{_number(share['alone'])} to {_number(share['on_top'])}"
                truths.append(f"{step} {ends}: {_number(share['measured'])} ± {_number(share['stderr'])}")
                results.append(bool(attributed(share)))
        lines.append([name, f"{larger} of {len(several)}", named, _rate(results), "; ".join(truths)])
    header = ["mixture", "larger first", "named first", "attributed", "true cost: step of the gap, by seed"]
    return table(header, lines)


def _sound_table(rows: list[dict[str, Any]]) -> str:
    false = [row for row in rows if first(row) is not None]
    if not false:
        return f"None of {len(rows)} has an error or a warning."
    lines = [
        [
            row["name"],
            row["family"],
            str(row["seed"]),
            " ".join(f"{code} {severity}" for severity, code in row["findings"]),
        ]
        for row in false
    ]
    return table(
        [f"{len(false)} of {len(rows)} with an error or a warning", "family", "seed", "findings"], lines
    )


def _by_name(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main() -> None:
    """Runs what has no row yet, and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=Path, default=HERE / ".diagnosis.jsonl", help="where the rows are kept"
    )
    parser.add_argument("--only", default="", help="trials whose key contains this")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th trial from the I-th on")
    parser.add_argument("--train", action="store_true", help="train the networks and check none")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    lines = options.rows.read_text().splitlines() if options.rows.exists() else []
    done = {row["key"]: row for line in lines if "skipped" not in (row := json.loads(line))}
    chosen = [trial for trial in trials() if options.only in trial.key]
    for trial in () if options.page else chosen[part::parts]:
        if options.train:
            _built(trial)
        elif trial.key not in done:
            done[trial.key] = {**run(trial), "commit": commit.stdout.strip() or "unknown"}
            with options.rows.open("a") as file:
                file.write(json.dumps(done[trial.key]) + "\n")
            print(trial.key, done[trial.key].get("crash") or done[trial.key].get("findings"), flush=True)
    if not options.train and parts == 1:
        rows = [done[trial.key] for trial in trials() if trial.key in done]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "diagnosis.md").write_text(page(rows, "python benchmarks/diagnosis.py"))


if __name__ == "__main__":
    main()
