"""What `fix` does to networks with faults that people reported: held-out scores before and after.

Run by itself: ``python benchmarks/field_fix.py FOLDER``, where FOLDER holds the cases: modules ``fault_*.py``
and ``healthy_*.py``, each with a list ``CASES``. A case has ``name``, ``names`` (codes that name its cause),
``healthy`` and ``build()``, which returns a subject: ``model``, ``loader``, ``score`` (held-out quality of a
model in evaluation, higher is better: an accuracy, or minus a loss), ``check`` and ``recalibrate`` (further
arguments), and perhaps ``reference``, ``deploy_loader`` and ``step``. ``--only`` picks cases by their names.

Two scores differ where they are two hundredths of an accuracy, or a twentieth of the loss as found, apart.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import varshift as vs
from _timing import table, write
from varshift.fixes import REMEDIES

ACCURACY, LOSS = 0.02, 0.05


@dataclass
class Row:
    """What became of one case.

    Attributes:
        name: Of the case.
        healthy: Whether nothing is wrong with it.
        named: The errors and warnings of the check that name its cause.
        curable: Whether these findings have safe cures that can be carried out.
        scores: Score as found, after recalibration, after the safe and the unsafe fix; NaN where that failed.
        cures: The cures that were carried out, safe and unsafe.
        left: The findings that the safe fix could not cure.
        why: The same with the reasons.
        errors: What was raised, by step.
    """

    name: str
    healthy: bool
    named: tuple[str, ...] = ()
    curable: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    cures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)

    def verdict(self) -> str:
        """What is to be said of the safe fix."""
        if self.errors:
            return "raised in " + ", ".join(self.errors)
        found, recalibrated, fixed = (self.scores[step] for step in ("found", "recalibrated", "fixed"))
        if _below(fixed, found, found):
            return "WORSE"
        if self.healthy:
            return "CHANGED" if self.cures["fixed"] else "untouched"
        if _below(fixed, recalibrated, found):
            return "below recalibration" if self.curable else "no safe cure"
        return "better" if _below(found, fixed, found) else "as before"


def _below(one: float, other: float, found: float) -> bool:
    """Whether a score is lower than another by more than its error."""
    if math.isnan(one) or not math.isfinite(other):
        return math.isfinite(other)
    return one < other - (ACCURACY if found > 0 else LOSS * abs(found) if math.isfinite(found) else 0.0)


def cases(folder: Path) -> Iterator[Any]:
    """The cases of a folder, those with a fault first."""
    sys.path.insert(0, str(folder))
    for pattern in ("fault_*.py", "healthy_*.py"):
        for file in sorted(folder.glob(pattern)):
            yield from importlib.import_module(file.stem).CASES


def treat(case: Any) -> Row:
    """Treats one case in every way; the subject's own model is copied for each."""
    row = Row(case.name, case.healthy)
    _seed(0)
    subject = case.build()
    row.scores["found"] = subject.score(copy.deepcopy(subject.model))

    def attempt(step: str, make: Callable[[], nn.Module]) -> None:
        _seed(0)
        row.scores[step] = math.nan
        try:
            row.scores[step] = subject.score(make())
        except vs.VarshiftError as error:
            row.errors[step] = f"{type(error).__name__}: {error}"
        except Exception as error:  # what must not happen is a result, too
            row.errors[step] = "".join(traceback.format_exception_only(error)).strip()
            traceback.print_exc()

    def recalibrated() -> nn.Module:
        model = copy.deepcopy(subject.model)
        vs.recalibrate(model, subject.loader, **subject.recalibrate)
        return model

    more = {"reference": subject.reference, "deploy": subject.deploy_loader, "step": subject.step}
    more = {name: value for name, value in more.items() if value is not None}

    def checked() -> vs.Report:
        report = vs.check(subject.model, subject.loader, **subject.check, **more)
        loud = [finding for finding in report.findings if finding.severity in ("error", "warning")]
        naming = [finding for finding in loud if finding.code in case.names]
        row.named = tuple(finding.code for finding in naming)
        offered = [cure for finding in naming for cure in finding.cures if cure.safety == "safe"]
        row.curable = any(cure.code in REMEDIES for cure in offered)
        return report

    def fixed(step: str) -> nn.Module:
        arguments = {name: subject.check[name] for name in ("forward", "loss") if name in subject.check}
        report = reports[0] if reports else checked()
        reports[:] = [report]
        cured = vs.fix(
            subject.model, report, loader=subject.loader, unsafe=step == "unsafe", **arguments, **more
        )
        row.cures[step] = tuple(dict.fromkeys(change.cure for change in cured.changes))
        if step == "fixed":
            row.left = tuple(failure.finding for failure in cured.failures)
            row.why = tuple(str(failure) for failure in cured.failures)
        return cured.model

    reports: list[vs.Report] = []
    row.cures = {"fixed": (), "unsafe": ()}
    attempt("recalibrated", recalibrated)
    if "refused" in case.names and "recalibrated" in row.errors:
        row.errors.pop("recalibrated")
    attempt("fixed", lambda: fixed("fixed"))
    attempt("unsafe", lambda: fixed("unsafe"))
    return row


def _seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def _line(row: Row) -> list[str]:
    scores = [
        f"{row.scores.get(step, math.nan):.3f}" for step in ("found", "recalibrated", "fixed", "unsafe")
    ]
    named = ", ".join(dict.fromkeys(row.named)) or "-"
    done = [", ".join(row.cures[step]) or "-" for step in ("fixed", "unsafe")]
    return [row.name, named, *scores, *done, ", ".join(dict.fromkeys(row.left)) or "-", row.verdict()]


def main() -> None:
    """Treats all cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--write", action="store_true", help="keep the table under benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    header = ["case", "named", "as found", "recalibrated", "fixed", "unsafe", "safe cures", "unsafe cures"]
    header += ["not cured", "verdict"]
    rows: list[Row] = []
    for case in cases(arguments.folder):
        if arguments.only and not any(word in case.name for word in arguments.only):
            continue
        rows.append(treat(case))
        print(" | ".join(_line(rows[-1])), flush=True)
        for text in (*rows[-1].why, *(f"{step}: {error}" for step, error in rows[-1].errors.items())):
            print(f"    {text}", flush=True)
    counts: dict[str, int] = {}
    for row in rows:
        verdict = row.verdict().split(" in ")[0]
        counts[verdict] = counts.get(verdict, 0) + 1
    text = table(header, [_line(row) for row in rows])
    text += "\n\n" + ", ".join(f"{verdict}: {count}" for verdict, count in sorted(counts.items())) + "."
    print(text)
    if arguments.write:
        write("field_fix", "Scores after a fix, on faults that people reported", text)


if __name__ == "__main__":
    main()
