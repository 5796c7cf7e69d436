"""Errors that varshift raises on purpose: each names the argument, the value, the rule and the remedy."""

from __future__ import annotations


class VarshiftError(Exception):
    """Base of all errors of this package."""


class ModelError(VarshiftError, ValueError):
    """The model cannot be used as given."""


class DataError(VarshiftError, ValueError):
    """The data cannot be used as given."""
