"""Bridges to other libraries; each imports its host only when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varshift.integrations._torchvision import (
        declare_torchvision_operators as declare_torchvision_operators,
    )


def __getattr__(name: str) -> object:
    if name == "declare_torchvision_operators":
        from varshift.integrations._torchvision import declare_torchvision_operators

        return declare_torchvision_operators
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
