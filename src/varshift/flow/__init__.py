"""The captured network: a graph of typed sites (noise, norm, weight, activation, join, pool, ...)."""

from varshift.flow._capture import capture as capture
from varshift.flow._capture import capture_in_place as capture_in_place
from varshift.flow._exported import read_exported as read_exported
from varshift.flow._types import Capture as Capture
from varshift.flow._types import CaptureMethod as CaptureMethod
from varshift.flow._types import Flow as Flow
from varshift.flow._types import Node as Node
from varshift.flow._types import NoiseSite as NoiseSite
from varshift.flow._types import NormSite as NormSite
from varshift.flow._types import Path as Path
from varshift.flow._types import Ref as Ref
