"""Cures that are carried out: plans of edits on a copy of a network, one file per cure."""

from varshift.fixes._edit import EDITS as EDITS
from varshift.fixes._edit import Change as Change
from varshift.fixes._edit import Edit as Edit
from varshift.fixes._edit import edit as edit
from varshift.fixes._edit import read_edit as read_edit
from varshift.fixes._noise_action import NoiseAction as NoiseAction
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
