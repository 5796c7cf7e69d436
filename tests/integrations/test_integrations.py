"""What holds without any host."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import varshift.integrations as integrations
from varshift import VarshiftError
from varshift.integrations import Options
from varshift.integrations._companion import Companion

FOLDER = Path(integrations.__file__).parent
HOSTS = {"lightning", "pytorch_lightning", "transformers", "ignite", "fastai", "accelerate"}


def test_no_host_is_imported_with_varshift_or_its_integrations():
    code = (
        "import sys, varshift, varshift.integrations, varshift.integrations._companion\n"
        f"assert not {HOSTS!r} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_host_is_declared_with_a_function_that_exists(hosts):
    from varshift.monitor import _watch

    points = _watch.entry_points(group="varshift.hosts")
    assert {point.name for point in points} == HOSTS - {"accelerate"}
    for point in points:
        path = FOLDER / f"{point.module.rpartition('.')[2]}.py"
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert point.attr in {function.name for function in functions}


def test_the_options_of_callbacks_are_those_that_are_taken():
    import inspect

    taken = set(inspect.signature(Companion).parameters) - {"watch"}
    assert set(Options.__annotations__) == taken


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"check_every": 0}, "check_every=0"),
        ({"select": ["VS999"]}, "VS999"),
        ({"sink": object()}, "sink is a object"),
    ],
)
def test_wrong_options_are_refused_before_any_training(options, text):
    with pytest.raises(VarshiftError, match=text):
        Companion(**options)
