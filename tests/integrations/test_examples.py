"""The examples end as they say: a finding, a cure, and nothing in the next run."""

import importlib.util
from pathlib import Path

import pytest

from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()
pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "needs", "codes"),
    [
        ("lightning_accumulation", ["lightning"], {"VS302", "VS305"}),
        ("transformers_freeze", ["transformers", "accelerate"], {"VS402"}),
    ],
)
def test_the_fault_is_found_and_gone_after_the_cure(name, needs, codes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install {package}")
    before, after = load(name).main()
    assert set(before.findings_by_code) == codes
    assert after.ok
    assert capsys.readouterr().out.rstrip().endswith("clean")


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"lightning_accumulation", "transformers_freeze"}
