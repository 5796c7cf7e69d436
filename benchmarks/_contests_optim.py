"""Contests of the optimiser parts."""

from __future__ import annotations

from _contest import StepContest

STEPS: list[StepContest] = []
