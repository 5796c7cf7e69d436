"""Faults by the thousand: wherever a check is cut short, model, data and process are as before.

`make battery` runs more of the same; VARSHIFT_FAULTS is their number, VARSHIFT_SEED chooses others.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from faults import (
    EXCEPTIONS,
    FailingCall,
    FailingLoader,
    FailingOperation,
    Fuse,
    TimedInterrupts,
    failing_forward,
    failing_loss,
    interrupted_lines,
)
from long_runs import LONG
from odd_networks import CLASSES, NETWORKS, WIDTH
from state_digest import Digest, process_state
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import varshift as vs
from varshift.fixes import REMEDIES

FAULTS = int(os.environ.get("VARSHIFT_FAULTS", "600"))
SEED = int(os.environ.get("VARSHIFT_SEED", "0"))
# How often each front door is tried: the shorter a call, the more faults a second.
_DOORS = {"recalibrate": 6, "measure": 3, "check": 2, "predict": 1, "fix": 1, "fix_": 3}
_CURES = ("recalibrate", "remove-noise", "swap-noise", "swap-norm", "lower-rate")
_REFUSED = ("ModelError", "DataError")  # of networks that cannot be predicted
_INJECTED = {"operation": 3, "call": 2, "loader": 1, "loss": 1, "forward": 2, "hook": 2}
_INTERRUPTS = {"line": 4, "two lines": 2, "signal": 3, "two signals": 2, "timer": 3}
if LONG:  # where two timers strike differs from run to run: they belong to the long run
    _INTERRUPTS["two timers"] = 2


class Trial:
    """One network with its data, one call and one fault, all drawn from one seed."""

    def __init__(self, network: str, seed: int) -> None:
        self.draw = random.Random(f"{network} {seed}")
        self.door = self._weighted(_DOORS)
        self.fault = self._weighted(_INJECTED | _INTERRUPTS)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        self.model = NETWORKS[network]().train(self.draw.random() < 0.7)
        for parameter in self.model.parameters():
            if parameter.requires_grad and self.draw.random() < 0.3:
                parameter.grad = torch.randn(parameter.shape)
        self.data = [(torch.randn(6, WIDTH) * 2 + 1, torch.randint(CLASSES, (6,))) for _ in range(2)]
        self.handle: vs.Recalibration | vs.Cured | None = None
        self.loader: Any = self.data
        self.kept: dict[str, Any] = {"model": self.model, "data": self.data}
        if self.door in ("fix", "fix_"):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
            for parameter in self.model.parameters():
                if parameter.requires_grad and self.draw.random() < 0.5:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.randn(parameter.shape)
            self.kept["optimizer"] = self.optimizer
        self.keywords: dict[str, Any] = {}
        if self.draw.random() < 0.3:
            dataset = TensorDataset(torch.randn(12, WIDTH), torch.randint(CLASSES, (12,)))
            sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
            self.loader = DataLoader(dataset, 6, sampler=sampler, generator=torch.Generator())
            self.kept["loader"] = self.loader

    def _weighted(self, weights: dict[str, int]) -> str:
        return self.draw.choices(list(weights), list(weights.values()))[0]

    def call(self) -> Any:
        """Calls the front door."""
        if self.door == "measure":
            from varshift.probe import measure

            return measure(self.model, self.data, **self.keywords)
        if self.door == "recalibrate":
            self.handle = vs.recalibrate(self.model, self.loader, **self.keywords)
            self.handle.undo()
            return self.handle
        if self.door in ("fix", "fix_"):
            known = [code for code in _CURES if code in REMEDIES]
            wishes = [code for code in known if self.draw.random() < 0.4] or ["recalibrate"]
            cured = getattr(vs, self.door)(
                self.model,
                loader=self.loader,
                cures=wishes,
                optimizer=self.optimizer,
                recheck=False,
                **self.keywords,
            )
            self.handle = cured
            cured.undo()
            return cured
        return getattr(vs, self.door)(self.model, self.loader, **self.keywords)

    def run(self) -> str:
        """Calls with the fault; returns what came of it."""
        draw = self.draw
        error = draw.choice(EXCEPTIONS)
        few, many = Fuse(error, draw.randint(1, 12)), Fuse(error, round(10 ** draw.uniform(0, 3.2)))
        lines = round(10 ** draw.uniform(0.5, 4.2))
        if self.fault == "loader" and self.door != "measure":
            self.loader = FailingLoader(self.data, Fuse(error, draw.randint(1, 2)))
        elif self.fault == "loss" and self.door in ("measure", "check"):
            self.keywords["loss"] = failing_loss(few)
        elif self.fault == "forward":
            self.keywords["forward"] = failing_forward(few)
        elif self.fault == "hook":
            modules = list(self.model.modules())
            draw.choice(modules).register_forward_pre_hook(lambda *args: few.event())
        contexts: dict[str, Callable[[], Any]] = {
            "operation": lambda: FailingOperation(many),
            "call": lambda: FailingCall(many),
            "line": lambda: interrupted_lines(lines),
            "two lines": lambda: interrupted_lines(lines, 2),
            "signal": lambda: interrupted_lines(lines, by_signal=True),
            "two signals": lambda: interrupted_lines(lines, 2, by_signal=True),
            "timer": lambda: TimedInterrupts(10 ** draw.uniform(-4, -0.7)),
            "two timers": lambda: TimedInterrupts(10 ** draw.uniform(-4, -0.7), 2),
        }
        before, process = Digest(**self.kept), process_state()
        outcome = "nothing"
        context = contexts.get(self.fault, contextlib.nullcontext)()
        try:
            with context:
                self.call()
        except BaseException as raised:
            outcome = type(raised).__name__
            if self.handle is None and _struck_in_call(raised):
                return "between recalibrate and the variable that takes its handle"
        if isinstance(context, TimedInterrupts):
            context.stop()
        if self.handle is not None:
            self.handle.undo()
        after = Digest(**self.kept)
        left = before.differences(after)
        now = process_state()
        left += [f"process: {name}" for name in process if process[name] != now[name]]
        if self.fault in _INTERRUPTS and outcome not in ("nothing", "KeyboardInterrupt", *_REFUSED):
            left.append(f"an interrupt that came as {outcome}")
        assert not left, f"{self.door}, {self.fault}, {error.__name__}, {outcome}: {left[:5]}"
        return outcome


def _struck_in_call(raised: BaseException | None) -> bool:
    """Whether an interrupt, or one before it, struck in `Trial.call` itself."""
    while raised is not None:
        trace = raised.__traceback__
        frames = []
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        while frames and frames[-1] == "_handle":  # of the timer, whose frame comes last
            frames.pop()
        if frames and frames[-1] == "call":
            return True
        raised = raised.__context__
    return False


# An interrupt may strike in a finaliser of torch's, where Python can do no more than say so.
# What recalibrating networks of chance does to their loss is worth a warning.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::varshift.VarshiftWarning"
)
@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_left_behind_by_a_fault(network):
    outcomes: dict[str, int] = {}
    for number in range(-(-FAULTS // len(NETWORKS))):
        trial = Trial(network, SEED * 1_000_003 + number)
        try:
            outcome = trial.run()
        except AssertionError as error:
            raise AssertionError(f"{network}, trial {number}: {error}") from None
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    if LONG:  # few say nothing
        assert outcomes.get("KeyboardInterrupt", 0) > 0.2 * sum(outcomes.values()), outcomes
        assert outcomes.get("nothing", 0) < 0.6 * sum(outcomes.values()), outcomes
