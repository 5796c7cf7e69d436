"""The papers' parts of an optimiser's step; they work beside any torch optimiser."""

from __future__ import annotations
