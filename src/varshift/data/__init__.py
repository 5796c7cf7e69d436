"""The papers' samplers and sample weights."""

from __future__ import annotations
