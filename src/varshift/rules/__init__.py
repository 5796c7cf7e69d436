"""The rules: one file per family, each rule a small class with a page. Nothing here imports torch."""

from varshift.evidence import Evidence as Evidence
from varshift.rules import (  # noqa: F401 - importing a family registers its rules
    _batches,
    _batches_inputs,
    _batches_order,
    _batches_updates,
    _modes,
    _modes_freezing,
    _modes_function,
    _modes_ranks,
    _modes_shared,
    _modes_state,
    _optimisation,
    _placement,
    _placement_evaluation,
    _placement_factor,
    _placement_norms,
    _placement_residual,
    _statistics,
    _statistics_broken,
    _statistics_foreign,
    _statistics_leverage,
    _statistics_output_bias,
    _statistics_per_sample,
    _statistics_settings,
    _statistics_shift,
    _statistics_stale,
    _statistics_stored,
)
from varshift.rules import _thresholds as thresholds  # noqa: F401 - read by the report
from varshift.rules._branches import Branch as Branch
from varshift.rules._branches import Branches as Branches
from varshift.rules._config import Config as Config
from varshift.rules._config import load_config as load_config
from varshift.rules._cost import Cost as Cost
from varshift.rules._cost import cost_in as cost_in
from varshift.rules._cost import cost_of as cost_of
from varshift.rules._cost import costs_by_step as costs_by_step
from varshift.rules._cost import graded as graded
from varshift.rules._cost import loss_severity as loss_severity
from varshift.rules._cures import CURES as CURES
from varshift.rules._examine import NOT_SELECTED as NOT_SELECTED
from varshift.rules._examine import Plan as Plan
from varshift.rules._examine import RuleRun as RuleRun
from varshift.rules._examine import examine as examine
from varshift.rules._examine import plan as plan
from varshift.rules._finding import SEVERITIES as SEVERITIES
from varshift.rules._finding import Confidence as Confidence
from varshift.rules._finding import Cure as Cure
from varshift.rules._finding import Finding as Finding
from varshift.rules._finding import FindingSite as FindingSite
from varshift.rules._finding import Safety as Safety
from varshift.rules._finding import Severity as Severity
from varshift.rules._finding import by_severity as by_severity
from varshift.rules._places import kind_of_norm as kind_of_norm
from varshift.rules._places import norm_place as norm_place
from varshift.rules._reading import noise_upstream as noise_upstream
from varshift.rules._reading import shift_of as shift_of
from varshift.rules._registry import FAMILIES as FAMILIES
from varshift.rules._registry import PAGE_HEADINGS as PAGE_HEADINGS
from varshift.rules._registry import Rule as Rule
from varshift.rules._registry import all_rules as all_rules
from varshift.rules._registry import get_rule as get_rule
from varshift.rules._registry import register as register
from varshift.rules._registry import resolve_selection as resolve_selection
from varshift.rules._registry import run_rules as run_rules
from varshift.rules._verdict import Verdict as Verdict
from varshift.rules._verdict import VerdictState as VerdictState
from varshift.rules._verdict import judge as judge
from varshift.rules._ways import Ways as Ways
