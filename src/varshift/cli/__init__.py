"""The command line: one file per verb, heavy imports inside the verbs."""

from varshift.cli._arguments import check_device as check_device
from varshift.cli._arguments import parse_arguments as parse_arguments
from varshift.cli._console import wide_console as wide_console
from varshift.cli._errors import described as described
from varshift.cli._errors import print_error as print_error
from varshift.cli._main import main as main
from varshift.cli._progress import progress_bar as progress_bar
