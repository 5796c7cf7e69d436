"""Contests of the binary."""

from __future__ import annotations

from _contest import Contest

LAYERS: list[Contest] = []
