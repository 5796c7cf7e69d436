"""Errors that varshift raises on purpose. Each message names the argument, the value, the rule, the remedy."""

from __future__ import annotations


class VarshiftError(Exception):
    """Base of all errors of this package."""


class ModelError(VarshiftError, ValueError):
    """The model cannot be used as given."""


class DataError(VarshiftError, ValueError):
    """The data cannot be used as given."""
