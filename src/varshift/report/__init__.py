"""One plain-data `Report` and one file per format that renders it."""

from varshift.report import (
    _concise,
    _github,
    _gitlab,
    _html,
    _json,
    _junit,
    _markdown,
    _sarif,
    _svg,
    _terminal,
    _text,
    _why,
)
from varshift.report._build import build_report as build_report
from varshift.report._codec import decode as decode
from varshift.report._codec import encode as encode
from varshift.report._files import check_writable as check_writable
from varshift.report._files import write_atomically as write_atomically
from varshift.report._files import write_text as write_text
from varshift.report._formats import FORMATS as FORMATS
from varshift.report._formats import Format as Format
from varshift.report._formats import format_for as format_for
from varshift.report._formats import register as register
from varshift.report._identity import new_findings as new_findings
from varshift.report._page import Line as Line
from varshift.report._page import Span as Span
from varshift.report._page import Style as Style
from varshift.report._page import heading as heading
from varshift.report._page import line as line
from varshift.report._page import paragraph as paragraph
from varshift.report._page import text_of as text_of
from varshift.report._read import content_of as content_of
from varshift.report._report import DataInfo as DataInfo
from varshift.report._report import Framework as Framework
from varshift.report._report import ModelInfo as ModelInfo
from varshift.report._report import Report as Report
from varshift.report._rows import LayerRow as LayerRow
from varshift.report._rows import MeasuredFigures as MeasuredFigures
from varshift.report._rows import NoiseRow as NoiseRow
from varshift.report._rows import PredictedFigures as PredictedFigures
from varshift.report._rows import StatisticsInfo as StatisticsInfo
from varshift.report._schema import report_schema as report_schema
from varshift.report._terminal import WIDEST as WIDEST
from varshift.report._terminal import print_lines as print_lines
from varshift.report._terminal import print_report as print_report
from varshift.report._words import counted as counted
from varshift.report._words import figure as figure
from varshift.report._words import module_name as module_name
from varshift.report._words import percent as percent
from varshift.report._words import place as place
from varshift.report._words import ratio as ratio
from varshift.report._words import rule_title as rule_title
from varshift.report._words import shortened as shortened
from varshift.report._words import signed as signed
from varshift.report._words import site_name as site_name
from varshift.report._words import uncertain as uncertain

register("json", _json.render, ".json")
register("text", _text.render, ".txt")
register("html", _html.render, ".html")
register("svg", _svg.render, ".svg")
register("md", _markdown.render, ".md")
register("sarif", _sarif.render, ".sarif")
register("junit", _junit.render, ".xml")
# For standard output: what a service of continuous integration reads there.
register("concise", _concise.render)
register("github", _github.render)
register("gitlab", _gitlab.render)
# For a prompt, a notebook and a console; none of them is a file.
register("brief", _text.brief)
register("notebook", _html.fragment)
register("rich", _terminal.renderables)
register("why", _why.why)
