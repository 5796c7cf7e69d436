"""Data sets as plain tensors, and loaders that shuffle them by seed."""

from __future__ import annotations

from ._cifar import Images as Images
from ._cifar import cifar10 as cifar10
from ._digits import Digits as Digits
from ._digits import digits as digits
from ._loader import tensor_loader as tensor_loader
