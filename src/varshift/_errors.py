"""Errors that varshift raises on purpose: each names the argument, the value, the rule and the remedy."""

from __future__ import annotations

import os


class VarshiftError(Exception):
    """Base of all errors of this package."""


class ModelError(VarshiftError, ValueError):
    """The model cannot be used as given."""


class DataError(VarshiftError, ValueError):
    """The data cannot be used as given."""


class VarshiftWarning(UserWarning):
    """Something that was done as asked, and that its user should look at: the message says how to undo it."""


def strict() -> bool:
    """Whether faults in what a check can do without are raised: ``VARSHIFT_STRICT=1``, as in the tests.

    For a user a prediction or a comparison that fails is a limit of the report. In the tests it would hide a
    fault of our own.
    """
    return os.environ.get("VARSHIFT_STRICT") == "1"
