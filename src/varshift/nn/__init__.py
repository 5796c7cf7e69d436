"""The papers' layers, with torch's conventions: `p` is a DROP probability, channels are axis 1."""

from __future__ import annotations
