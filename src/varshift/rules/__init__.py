"""The rules: one file per family, each rule a small class with a page."""

from varshift.rules._evidence import Evidence as Evidence
from varshift.rules._finding import SEVERITIES as SEVERITIES
from varshift.rules._finding import Confidence as Confidence
from varshift.rules._finding import Cure as Cure
from varshift.rules._finding import Finding as Finding
from varshift.rules._finding import Safety as Safety
from varshift.rules._finding import Severity as Severity
