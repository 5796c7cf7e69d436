"""Tables, figures and verdicts from what the trials measured."""

from __future__ import annotations

from ._claims import CLAIMS as CLAIMS
from ._claims import Verdict as Verdict
from ._claims import verdict as verdict
from ._csv import to_csv as to_csv
from ._figure import draw as draw
from ._lines import Line as Line
from ._lines import lines as lines
from ._markdown import claims_markdown as claims_markdown
from ._markdown import table_markdown as table_markdown
from ._terminal import print_claims as print_claims
from ._terminal import print_table as print_table
from ._values import Results as Results
from ._write import write_claims as write_claims
from ._write import write_figure as write_figure
from ._write import write_table as write_table
