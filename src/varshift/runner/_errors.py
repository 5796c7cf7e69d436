"""What can go wrong between trials."""

from __future__ import annotations

from varshift._errors import VarshiftError


class RunnerError(VarshiftError):
    """Workers cannot be started, or end before they begin."""
