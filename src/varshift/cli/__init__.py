"""The command line: one file per verb, heavy imports inside the verbs."""

from varshift.cli._main import main as main
