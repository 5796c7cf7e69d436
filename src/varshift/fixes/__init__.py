"""Cures that are carried out: plans of edits on a copy of a network, one file per cure."""

from varshift.fixes._edit import EDITS as EDITS
from varshift.fixes._edit import Change as Change
from varshift.fixes._edit import Edit as Edit
from varshift.fixes._edit import edit as edit
from varshift.fixes._edit import read_edit as read_edit
from varshift.fixes._noise_action import NoiseAction as NoiseAction
from varshift.fixes._norm_layers import LAYERS as LAYERS
from varshift.fixes._norm_layers import LayerSettings as LayerSettings
from varshift.fixes._norm_layers import group_count as group_count
from varshift.fixes._norm_places import NormPlace as NormPlace
from varshift.fixes._norm_places import norm_places as norm_places
from varshift.fixes._patient import Patient as Patient
from varshift.fixes._plan import Plan as Plan
from varshift.fixes._proof import Proof as Proof
from varshift.fixes._proof import prove as prove
from varshift.fixes._remedy import REMEDIES as REMEDIES
from varshift.fixes._remedy import NoOptions as NoOptions
from varshift.fixes._remedy import Remedy as Remedy
from varshift.fixes._remedy import plan_cure as plan_cure
from varshift.fixes._remedy import remedy as remedy
from varshift.fixes._surgery import Refused as Refused
from varshift.fixes._surgery import Surgery as Surgery
from varshift.fixes._swap_norm import SwapNorm as SwapNorm
from varshift.fixes._swap_norm import SwapNormOptions as SwapNormOptions
