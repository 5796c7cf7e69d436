"""What ``varshift fix`` prints: the list of changes, what was written, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from varshift.cli._console import wide_console
from varshift.fixes import REMEDIES, lines_of
from varshift.report import WIDEST, Line, Span, line, paragraph, print_lines, rule_title

if TYPE_CHECKING:
    from varshift import Cured
    from varshift.rules import Finding


def print_cured(
    cured: Cured,
    new: Sequence[Finding],
    words: Sequence[str],
    written: Sequence[Path],
    again: Sequence[str],
    *,
    full: bool,
) -> None:
    """Prints what a fix brought.

    Args:
        cured: The treated network.
        new: Findings that came with the treatment.
        words: The command that was given.
        written: The files that were written.
        again: The command that checks the cured network.
        full: Whether to show every place.
    """
    console = wide_console()
    width = min(console.width, WIDEST)
    lines = lines_of(cured, width=width, full=full)
    for finding in new:
        mark = Span(f"New: {rule_title(finding.code)}: ", finding.severity)
        lines += paragraph(finding.message, width, indent=0, mark=mark)
    if written:
        lines.append(())
        names = ", ".join(path.name for path in written)
        lines += paragraph(f"Written to {written[0].parent}: {names}.", width, indent=0)
    elif "--dry-run" not in words:
        lines += [(), line("Nothing was written.")]
    steps = _next_steps(cured, words, again, written=bool(written))
    if steps:
        lines += [(), line(Span("Next", "strong"))]
    for command, meaning in steps:
        lines += _step(command, meaning, width)
    print_lines(lines, console)


def _next_steps(
    cured: Cured, words: Sequence[str], again: Sequence[str], *, written: bool
) -> list[tuple[str, str]]:
    """Commands worth running now, each with what it does."""
    steps = []
    done = {change.cure for change in cured.changes}
    train = any(code in REMEDIES and REMEDIES[code].safety == "unsafe" for code in done)
    if written and train:
        steps.append(("from apply import build", "in the folder: the network that is to be trained again"))
    if written:
        steps.append((shlex.join(again), "checks the cured network"))
    elif cured.changes and "--dry-run" in words:
        real = [word for word in words if word != "--dry-run"]
        steps.append((shlex.join([*real, *([] if "--out" in real else ["--out", "DIR"])]), "does it"))
    if any(failure.unsafe for failure in cured.failures) and "--unsafe" not in words:
        steps.append((shlex.join([*words, "--unsafe"]), "tries the cures that need another training, too"))
    codes = dict.fromkeys(failure.finding for failure in cured.failures if failure.finding)
    steps += [(f"varshift explain {code}", "what it is and what cures it") for code in list(codes)[:3]]
    return steps


def _step(command: str, meaning: str, width: int) -> list[Line]:
    first = line(Span("  "), Span(command, "code"))
    if len(command) + len(meaning) + 6 <= width:
        return [(*first, Span(f"    {meaning}", "quiet"))]
    return [first, *paragraph(meaning, width, indent=6, style="quiet")]
