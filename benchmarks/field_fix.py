"""What `fix` does to networks with faults that people reported: held-out scores before and after.

Run by itself: ``python benchmarks/field_fix.py FOLDER``, where FOLDER holds the cases: modules ``fault_*.py``
and ``healthy_*.py``, each with a list ``CASES``. A case has ``name``, ``names`` (codes that name its cause),
``healthy`` and ``build()``, which returns a subject: ``model``, ``loader``, ``score`` (held-out quality of a
model in evaluation, higher is better: an accuracy, or minus a loss), ``check`` and ``recalibrate`` (further
arguments), and perhaps ``reference``, ``deploy_loader`` and ``step``. ``--only`` picks cases by their names;
with ``--rows FILE`` rows are kept there, and a case that has one is not treated again.

Two scores differ where they are more than two standard errors, and a thousandth, apart. The error is that of
the difference of two networks on the same held-out samples: each of twenty parts of them is scored with the
outputs of the one network, the rest with those of the other, and what that changes differs from part to part.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import varshift as vs
from _timing import table, write
from varshift.fixes import REMEDIES

PARTS, ERRORS = 20, 2.0
ESTIMATES = 1e-3  # of a score: two estimates of the same statistics, from other samples of the data

LEGEND = """\
Scores in `eval()` on held-out data, higher is better: an accuracy, or minus a loss. As found, after
`varshift.recalibrate` on the loader of the case, after `varshift.fix` with its defaults and with
`unsafe=True` (whose cures need another training, which is not done here). "Fixed over found" and "fixed
over recalibrated" are differences with the standard error of a paired comparison on the same samples.
"Named": the findings that name the cause of the case; "not cured": those that remain, with what was done to
relieve them. A verdict takes two standard errors and a thousandth of the score. Cases that are "untouched"
are healthy twins, which `fix` must leave alone (`python benchmarks/field_fix.py FOLDER --rows FILE
--write`)."""


@dataclass
class Row:
    """What became of one case.

    Attributes:
        name: Of the case.
        healthy: Whether nothing is wrong with it.
        named: The errors and warnings of the check that name its cause.
        curable: Whether these findings have safe cures that can be carried out.
        scores: Score as found, after recalibration, after the safe and the unsafe fix; NaN where that failed.
        differences: By how much the score after the safe fix is above those as found and after recalibration,
            with the standard error of that; NaN where it cannot be measured.
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
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    cures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)

    def verdict(self) -> str:
        """What is to be said of the safe fix."""
        if self.errors:
            return "raised in " + ", ".join(self.errors)
        if self._side("found") < 0:
            return "WORSE"
        if self.healthy:
            return "CHANGED" if self.cures["fixed"] else "untouched"
        if self._side("recalibrated") < 0:
            return "below recalibration" if self.curable else "no safe cure"
        return "better" if self._side("found") > 0 else "as before"

    def _side(self, other: str) -> int:
        """1 where the score after the fix is above another one beyond its error, -1 where it is below."""
        fixed, score = self.scores["fixed"], self.scores[other]
        if not (math.isfinite(fixed) and math.isfinite(score)):
            return math.isfinite(fixed) - math.isfinite(score)
        difference, error = self.differences[other]
        if abs(difference) <= max(ERRORS * error, ESTIMATES * abs(score)):
            return 0
        return 1 if difference > 0 else -1


class _Rows:
    """Numbers the rows of the outputs, however often the network around it is copied."""

    def __init__(self) -> None:
        self.count = 0

    def __deepcopy__(self, memo: Any) -> _Rows:
        return self


class _Mixture:
    """A hook that puts the outputs of another network in the place of every twentieth row."""

    def __init__(self, other: nn.Module, part: int) -> None:
        self._other, self._part, self._rows = other, part, _Rows()

    def __call__(self, network: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        self._other.train(network.training)
        others = self._other(*args, **kwargs)
        first = self._rows.count
        size = 0

        def mixed(one: Any, two: Any) -> Any:
            nonlocal size
            if isinstance(one, torch.Tensor) and one.ndim:
                size = len(one)
                chosen = (torch.arange(size) + first) % PARTS == self._part
                return torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), two, one)
            if isinstance(one, dict):
                return type(one)({key: mixed(one[key], two[key]) for key in one})
            if isinstance(one, (list, tuple)):
                return type(one)(mixed(a, b) for a, b in zip(one, two, strict=True))
            return one

        outputs = mixed(outputs, others)
        self._rows.count += size
        return outputs


def difference(score: Callable[[nn.Module], float], one: nn.Module, other: nn.Module) -> tuple[float, float]:
    """By how much one network scores above another one, and the standard error of that over the samples."""
    base = score(copy.deepcopy(other))
    changes = []
    for part in range(PARTS):
        mixture = copy.deepcopy(other)
        mixture.register_forward_hook(_Mixture(copy.deepcopy(one), part), with_kwargs=True)
        changes.append(score(mixture) - base)
    return score(copy.deepcopy(one)) - base, float(np.std(changes, ddof=1)) * math.sqrt(PARTS)


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
    networks: dict[str, nn.Module] = {"found": subject.model}

    def attempt(step: str, make: Callable[[], nn.Module]) -> None:
        _seed(0)
        row.scores[step] = math.nan
        try:
            networks[step] = make()
            row.scores[step] = subject.score(copy.deepcopy(networks[step]))
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
    for other in ("found", "recalibrated"):
        row.differences[other] = math.nan, math.nan
        if other == "found" and not row.cures["fixed"]:
            row.differences[other] = 0.0, 0.0  # a plain copy
            continue
        if math.isfinite(row.scores["fixed"]) and math.isfinite(row.scores[other]):
            row.differences[other] = difference(subject.score, networks["fixed"], networks[other])
    return row


def _seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def _line(row: Row) -> list[str]:
    scores = [
        f"{row.scores.get(step, math.nan):.3f}" for step in ("found", "recalibrated", "fixed", "unsafe")
    ]
    differences = ["{:+.3f} ± {:.3f}".format(*row.differences[step]) for step in ("found", "recalibrated")]
    named = ", ".join(dict.fromkeys(row.named)) or "-"
    done = [", ".join(row.cures[step]) or "-" for step in ("fixed", "unsafe")]
    return [
        row.name,
        named,
        *scores,
        *differences,
        *done,
        ", ".join(dict.fromkeys(row.left)) or "-",
        row.verdict(),
    ]


def _lines_of(path: Path | None) -> list[str]:
    return path.read_text().splitlines() if path is not None and path.exists() else []


def main() -> None:
    """Treats all cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rows", type=Path, help="file of rows, one a line")
    parser.add_argument("--write", action="store_true", help="keep the table under benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    header = ["case", "named", "as found", "recalibrated", "fixed", "unsafe", "fixed over found"]
    header += ["fixed over recalibrated", "safe cures", "unsafe cures", "not cured", "verdict"]
    kept = [Row(**json.loads(line)) for line in _lines_of(arguments.rows)]
    known = {row.name: row for row in kept}
    rows: list[Row] = []
    for case in cases(arguments.folder):
        if arguments.only and not any(word in case.name for word in arguments.only):
            continue
        if case.name in known:
            rows.append(known[case.name])
            continue
        rows.append(treat(case))
        if arguments.rows is not None:
            with arguments.rows.open("a") as file:
                file.write(json.dumps(asdict(rows[-1])) + "\n")
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
        write("field_fix", "Scores after a fix, on faults that people reported", f"{LEGEND}\n\n{text}")


if __name__ == "__main__":
    main()
