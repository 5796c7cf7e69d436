"""The papers' networks, with every placement of dropout as an argument."""

from __future__ import annotations

from ._placement import Placement as Placement
from ._preresnet import PreResNet as PreResNet
from ._preresnet import preresnet as preresnet
