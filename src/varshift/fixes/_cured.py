"""What a treatment brought: the cured network, the list of changes, what failed, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from varshift._sites import SiteId
from varshift.fixes._again import gone, still_there
from varshift.fixes._edit import Change
from varshift.fixes._lines import lines_of
from varshift.fixes._plan import Plan
from varshift.probe import Recalibration
from varshift.report import Report, text_of
from varshift.rules import Finding


@dataclass(frozen=True, slots=True)
class Failure:
    """A finding that is still there, or a wish that could not be met.

    Attributes:
        finding: Code of the rule; empty for a wish of the user's.
        tried: Of each cure that was tried, its code and why it did not do.
        by_hand: What can be done outside of `fix`: the names of the other cures.
        unsafe: Codes of the cures that were not tried because they need another training.
        sites: The places that the finding concerns.
    """

    finding: str
    tried: tuple[tuple[str, str], ...] = ()
    by_hand: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    sites: tuple[SiteId, ...] = ()

    def __str__(self) -> str:
        tried = "; ".join(f"{code}: {reason}" for code, reason in self.tried) or "no safe cure applies here"
        text = f"{self.finding or 'asked for'}  {tried.rstrip('.')}."
        if self.unsafe:
            text += f" With unsafe=True: {', '.join(self.unsafe)}."
        return text + (f" By hand: {', or '.join(self.by_hand)}." if self.by_hand else "")


@dataclass(eq=False, repr=False)
class Cured:
    """A treated network.

    Attributes:
        model: The network; the user's own after `fix_`, a copy after `fix`.
        changes: What changed, place by place.
        plan: The same as data, to repeat it: `varshift.apply_plan`.
        before: The check before; None where there was none.
        after: The check of the treated network; None where nothing was treated, or nothing could be checked.
        failures: The findings that are still there and the wishes that could not be met, with the reasons.
        notes: What else its user should know.
        optimizer: The optimiser in step with `model`: the user's own after `fix_`, a copy after `fix`.
        loader: The loader, another one where a cure of the data asked for it.
        recalibration: What the last re-estimation of statistics did, on the copy; None without one. `undo`
            takes it back with all the rest.
        way_back: What `undo` calls; None where there is nothing to undo.
    """

    model: nn.Module
    changes: tuple[Change, ...] = ()
    plan: Plan = field(default_factory=lambda: Plan(()))
    before: Report | None = None
    after: Report | None = None
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    optimizer: Optimizer | None = None
    loader: Any = None
    recalibration: Recalibration | None = None
    way_back: Callable[[], None] | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that was to be cured is cured."""
        return not self.failures

    @property
    def gone(self) -> tuple[Finding, ...]:
        """The findings of the check before that the check after looked for and does not have."""
        return gone(self.before, self.after)

    @property
    def appeared(self) -> tuple[Finding, ...]:
        """The errors and warnings of the check after that the check before does not have."""
        if self.before is None or self.after is None:
            return ()
        serious = [finding for finding in self.after.findings if finding.severity != "advice"]
        return tuple(finding for finding in serious if not still_there(finding, self.before.findings))

    def undo(self) -> None:
        """Makes `model`, `optimizer` and `loader` what they were, bit for bit; a second time does nothing."""
        if self.way_back is None:
            return
        try:
            self.way_back()
        except BaseException:  # an interrupt in the middle: all of it once more
            self.way_back()
            raise
        self.way_back = None
        self.changes, self.plan, self.after = (), Plan(()), None

    def text(self, *, width: int = 100, full: bool = False) -> str:
        """The list of changes: place, before, after, line of code; what is gone, what is left and why.

        Args:
            width: Columns to fill.
            full: Whether to show every place instead of the first eight of each cure.
        """
        return "\n".join(text_of(content) for content in lines_of(self, width=width, full=full))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        counts = f"{len(self.changes)} changes, {len(self.gone)} findings gone, {len(self.failures)} failures"
        return f"<Cured: {counts}>"
