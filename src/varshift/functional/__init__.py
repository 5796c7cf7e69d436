"""The functions behind the layers of `varshift.nn`; a layer and its twin share one kernel."""

from __future__ import annotations
