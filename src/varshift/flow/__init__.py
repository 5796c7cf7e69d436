"""The captured network: a graph of typed sites (noise, norm, weight, activation, join, pool, ...)."""

from varshift.flow._capture import capture as capture
from varshift.flow._capture import capture_in_place as capture_in_place
from varshift.flow._difference import Parting as Parting
from varshift.flow._difference import first_difference as first_difference
from varshift.flow._exported import read_exported as read_exported
from varshift.flow._operators import UnknownOperator as UnknownOperator
from varshift.flow._operators import arguments_of as arguments_of
from varshift.flow._operators import execute as execute
from varshift.flow._operators import is_pointwise as is_pointwise
from varshift.flow._operators import overwrites as overwrites
from varshift.flow._recognised import RecognisedNorms as RecognisedNorms
from varshift.flow._recognised import may_hold_statistics as may_hold_statistics
from varshift.flow._recognised import recognise_norms as recognise_norms
from varshift.flow._recognised import recognised_norms as recognised_norms
from varshift.flow._types import Capture as Capture
from varshift.flow._types import CaptureMethod as CaptureMethod
from varshift.flow._types import Flow as Flow
from varshift.flow._types import Node as Node
from varshift.flow._types import NoiseSite as NoiseSite
from varshift.flow._types import NormSite as NormSite
from varshift.flow._types import Path as Path
from varshift.flow._types import Ref as Ref
from varshift.flow._vocabulary import Property as Property
from varshift.flow._vocabulary import has_property as has_property
from varshift.flow._vocabulary import lent_arguments as lent_arguments
from varshift.flow._vocabulary import operations as operations
