"""The handle of a watched training: steps in, findings and a report out."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from varshift._errors import VarshiftError, VarshiftWarning
from varshift.evidence import Evidence, History, ModeFacts, NotMade, OptimizerFacts, optimizer_facts
from varshift.model import norm_facts
from varshift.monitor._follower import Follower, trains
from varshift.monitor._recorder import Recorder
from varshift.monitor._sink import as_alert, as_sink, plain_names
from varshift.probe import compare_networks
from varshift.report import Report, build_report
from varshift.rules import NOT_SELECTED, Finding, RuleRun, all_rules, run_rules

# What a training can show while it runs; the other rules look at a network that is trained.
CODES = ("VS202", "VS203", "VS205", "VS305", "VS402", "VS403", "VS404", "VS501")
_LEFT_BEHIND = 2000  # moves of an averaged copy after which its statistics were left behind for good
_LOGGED = 5  # norms that a sink is told of
_HOSTS = "varshift.hosts"  # group of entry points, each named like the package of its host


class Watch:
    """Watches a training from outside; see `varshift.watch`, which makes it.

    Call `step` after each step of the optimiser (or after each part of it, where gradients are
    accumulated). As a context it takes a last look at the end.

    Attributes:
        findings: What was found so far, the first of each kind.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        every: int = 1,
        optimizer: Optimizer | None = None,
        references: Sequence[nn.Module] = (),
        reference_names: Sequence[str] = (),
        sink: Any = None,
        on_finding: Callable[[Finding], Any] | None = None,
        codes: Sequence[str] = CODES,
        strict: bool = False,
        target: str = "",
    ) -> None:
        self._network, self._references, self._optimizer = network, tuple(references), optimizer
        self._recorder = Recorder(network, optimizer, every)
        self._followers = [
            Follower(one, network, self._recorder.statistics, name)
            for one, name in zip(references, reference_names, strict=True)
        ]
        self._sink = None if sink is None else as_sink(sink)
        self._alert = None if sink is None else as_alert(sink)
        self._plain = plain_names([norm.name for norm in self._recorder.norms])
        self._on_finding, self._strict = on_finding, strict
        self._codes = tuple(code for code in codes if code in CODES)
        self._target = target or type(network).__name__
        self._next_look = 2
        self._seen: dict[tuple[str, Any], Finding] = {}
        self._limits: list[str] = []
        self._open = True
        self._groups: OptimizerFacts | None = None
        if optimizer is not None:
            with contextlib.suppress(NotMade):  # it trains something else
                names = [norm.name for norm in self._recorder.norms]
                self._groups = optimizer_facts(network, optimizer, names)
        if self._recorder.skipped_norms:
            names = ", ".join(self._recorder.skipped_norms[:3])
            self._limits.append(f"Norms whose statistics cannot be read are not watched: {names}.")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(look=kind is None)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far, the first of each kind."""
        return tuple(self._seen.values())

    def step(self) -> None:
        """Takes note of a step of the training, right after the optimiser made it.

        Raises nothing unless the watch is strict: what fails in it ends the watch, and the report says so.
        """
        if not self._open:
            return
        try:
            read = self._recorder.step()
            if read:
                for follower in self._followers:
                    follower.see()
            if read and self._recorder.readings >= self._next_look:
                # At 2, 3, 4, 6, 9 ... readings, later every 200.
                self._next_look = min(math.ceil(self._next_look * 1.3 + 0.5), self._next_look + 200)
                self._look(final=False)
        except VarshiftWarning:  # a filter of the user's makes errors of warnings
            raise
        except Exception as error:
            self._fail(error)

    def look(self) -> tuple[Finding, ...]:
        """Looks for findings now; returns those that are new.

        Call it before an averaged copy (``reference=``) is evaluated: whether its statistics were
        re-estimated is asked here and at the end, as in between nobody uses them.
        """
        return self._look(final=True)

    def _look(self, *, final: bool) -> tuple[Finding, ...]:
        evidence = self._evidence(references=final)
        new = []
        for finding in (*run_rules(evidence, self._codes), *self._followed(final=final)):
            key = _kind(finding)
            known = self._seen.get(key)
            self._seen[key] = finding
            if known is None:
                new.append(finding)
        self._log(evidence.history)
        for finding in new:
            self._announce(finding)
        return tuple(new)

    def close(self, *, look: bool = True) -> None:
        """Ends the watch, with a last look at what was seen."""
        if not self._open:
            return
        try:
            if look and self._recorder.readings > 1:
                self.look()
        except VarshiftWarning:
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._open = False

    @property
    def report(self) -> Report:
        """What is known now, as a report with a history; `varshift.check` takes it as ``history=``."""
        evidence = self._evidence()
        runs = [
            RuleRun(rule.code, rule.code in self._codes, "" if rule.code in self._codes else NOT_SELECTED)
            for rule in all_rules()
        ]
        return build_report(
            target=self._target,
            parameters=sum(parameter.numel() for parameter in self._network.parameters()),
            evidence=evidence,
            capture_method="hooks",
            findings=self.findings,
            limits=self._limits,
            rules=runs,
        )

    def batch_moments(self, norm: str) -> tuple[Tensor, Tensor] | None:
        """Mean and unbiased variance per channel of the last batch that a norm saw, from its buffers.

        Args:
            norm: Name of the norm.

        Returns:
            None where it was not updated exactly once in the last step that was read.

        Raises:
            VarshiftError: If there is no such norm.
        """
        names = [one.name for one in self._recorder.norms]
        if norm not in names:
            raise VarshiftError(f"norm={norm!r} is not watched: norms are {', '.join(names) or 'missing'}.")
        return self._recorder.statistics.batch_moments(names.index(norm))

    def updates(self) -> dict[str, int | None]:
        """Updates of each norm since the reading before the last; None where a norm does not count them."""
        counted = self._recorder.statistics.updates()
        return {one.name: count for one, count in zip(self._recorder.norms, counted, strict=True)}

    def attach(self, host: Any) -> Watch:
        """Has a host of training call `step`: a trainer of Lightning or transformers, an engine, a learner.

        Raises:
            VarshiftError: If the host is of a kind that is not known.

        Returns:
            The watch itself.
        """
        packages = [cls.__module__.partition(".")[0] for cls in type(host).__mro__]
        hosts = {point.name: point for point in entry_points(group=_HOSTS)}
        point = next((hosts[name] for name in packages if name in hosts), None)
        if point is None:
            known = ", ".join(sorted(hosts)) or "none"
            raise VarshiftError(
                f"host is a {type(host).__name__}: known are those of {known}. In a loop of your own call "
                "step() after optimizer.step()."
            )
        point.load()(self, host)
        return self

    def state_dict(self) -> dict[str, Any]:
        """What the watch remembers, for a checkpoint: plain values only."""
        return {"report": self.report.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the watch that gave this state was: counts go on, and nothing is said again.

        Load the model first.

        Raises:
            VarshiftError: If this is no state of a watch.
        """
        report = Report.from_dict(state["report"]) if "report" in state else None
        if report is None or report.history is None:
            raise VarshiftError("state is not what Watch.state_dict returned: it has no history.")
        self._recorder.resume(report.history)
        self._seen = {_kind(finding): finding for finding in report.findings}
        self._next_look = max(self._next_look, self._recorder.readings + 2)

    # -- inside -------------------------------------------------------------------------------------------

    def _evidence(self, *, references: bool = False) -> Evidence:
        recorder, network = self._recorder, self._network
        recorder.flags.read()
        root = network.training
        follows = self._follows()
        norms = {norm.name: norm_facts(norm, live=follows or norm.module.training) for norm in recorder.norms}
        compared = None
        if references and follows and "VS205" in self._codes:
            compared = compare_networks(network, recorder.norms, self._references)
        watched = {norm.name.partition("#")[0]: norm.module for norm in recorder.norms}
        watched |= {noise.name: noise.module for noise in recorder.flags.noise}
        parameters = dict(network.named_parameters())
        return Evidence(
            norms=norms,
            modes=ModeFacts(
                root,
                {name: type(m).__name__ for name, m in watched.items() if m.training != root},
                noise=tuple(noise.name for noise in recorder.flags.noise),
                trained=tuple(name for name, p in parameters.items() if p.requires_grad),
                frozen=tuple(name for name, p in parameters.items() if not p.requires_grad),
            ),
            references=compared,
            history=recorder.history(),
            optimizer=self._groups,
        )

    def _followed(self, *, final: bool) -> Iterator[Finding]:
        """What the networks show whose weights follow the watched one."""
        if "VS205" not in self._codes or self._follows():
            return
        for follower in self._followers:
            # That statistics are left behind for good no re-estimation before an evaluation can undo.
            for_good = not follower.told and follower.moves >= _LEFT_BEHIND and follower.left_behind
            if trains(follower.network, self._optimizer) or not (final or for_good):
                continue
            follower.told = follower.told or for_good
            evidence = follower.evidence()
            if evidence is not None:
                yield from run_rules(evidence, ["VS205"])

    def _follows(self) -> bool:
        """Whether the watched network follows one that trains."""
        others = any(trains(one, self._optimizer) for one in self._references)
        return others and not trains(self._network, self._optimizer)

    def _announce(self, finding: Finding) -> None:
        if self._on_finding is not None:
            self._on_finding(finding)
        elif finding.severity != "advice":
            text = f"{finding.code}: {finding.message} (varshift explain {finding.code})"
            warnings.warn(text, VarshiftWarning, stacklevel=4)
        if self._alert is not None and finding.severity != "advice":
            self._hand_over(self._alert, f"varshift {finding.code}", finding.message)

    def _log(self, history: History | None) -> None:
        if history is None or self._sink is None:
            return
        figures = {"varshift/findings": float(len(self._seen))}
        known = [norm for norm in history.norms.values() if norm.variance_ratio is not None]
        known.sort(key=lambda norm: -abs(math.log(max(norm.variance_ratio or 1.0, 1e-12))))
        for norm in known[:_LOGGED]:
            figures[f"varshift/{self._plain[norm.name]}/ratio"] = float(norm.variance_ratio or 1.0)
            figures[f"varshift/{self._plain[norm.name]}/offset"] = float(norm.mean_offset or 0.0)
        self._hand_over(self._sink, figures, self._recorder.steps)

    def _hand_over(self, tracker: Callable[..., Any], *values: Any) -> None:
        """Hands something to the user's tracker; one that fails is left alone from then on."""
        try:
            tracker(*values)
        except Exception as error:
            if self._strict:
                raise
            self._sink = self._alert = None
            self._limits.append(
                f"Nothing is logged since step {self._recorder.steps}: {type(error).__name__}: {error}"
            )

    def _fail(self, error: Exception) -> None:
        if self._strict:
            raise error
        self._open = False
        self._limits.append(
            f"The watch ended at step {self._recorder.steps}: {type(error).__name__}: {error}"
        )


def _kind(finding: Finding) -> tuple[str, Any]:
    """What a finding is about, told once."""
    form = finding.evidence.get("form", finding.evidence.get("reason"))
    network = finding.evidence.get("network")
    return finding.code, form if network is None else f"{form} {network}"
