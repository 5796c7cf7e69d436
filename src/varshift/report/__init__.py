"""One plain-data `Report` and one file per format that writes it."""

from varshift.report._build import build_report as build_report
from varshift.report._formats import FORMATS as FORMATS
from varshift.report._formats import Format as Format
from varshift.report._report import DataInfo as DataInfo
from varshift.report._report import LayerRow as LayerRow
from varshift.report._report import ModelInfo as ModelInfo
from varshift.report._report import NoiseRow as NoiseRow
from varshift.report._report import Report as Report
from varshift.report._schema import report_schema as report_schema
