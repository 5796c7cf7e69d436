"""The lab's verbs for the command line. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

from ._demo import demo as demo
from ._lab import lab as lab
