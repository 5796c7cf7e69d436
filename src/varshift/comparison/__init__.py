"""Variants of a network, trained over seeds and judged in pairs."""

from varshift.comparison._carry_out import Place as Place
from varshift.comparison._carry_out import Results as Results
from varshift.comparison._carry_out import carry_out as carry_out
from varshift.comparison._carry_out import looks_of as looks_of
from varshift.comparison._comparison import Comparison as Comparison
from varshift.comparison._comparison import Pair as Pair
from varshift.comparison._comparison import VariantRow as VariantRow
from varshift.comparison._judge import LEVEL as LEVEL
from varshift.comparison._judge import POWER as POWER
from varshift.comparison._loop import LoopSettings as LoopSettings
from varshift.comparison._setup import Setup as Setup
from varshift.comparison._setup import check_sendable as check_sendable
from varshift.comparison._table import cells as cells
from varshift.comparison._table import headings as headings
from varshift.comparison._table import sentences as sentences
from varshift.comparison._table import title_of as title_of
from varshift.comparison._variants import DEFAULT as DEFAULT
from varshift.comparison._variants import REFERENCE as REFERENCE
from varshift.comparison._variants import VARIANTS as VARIANTS
from varshift.comparison._variants import Own as Own
from varshift.comparison._variants import Variant as Variant
from varshift.comparison._variants import variants_of as variants_of
from varshift.comparison._verdicts import Criterion as Criterion
from varshift.comparison._verdicts import judge_pairs as judge_pairs
from varshift.comparison._verdicts import row_of as row_of
