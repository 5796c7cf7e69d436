import subprocess
import sys

import pytest

from varshift import __version__
from varshift.rules import all_rules

WITHOUT_TORCH = """
import sys
from varshift.cli import main
code = main({words!r})
heavy = [name for name in ("torch", "numpy", "timm", "torchvision", "sklearn") if name in sys.modules]
sys.stderr.write(f"{{code}} {{heavy}}")
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        ["rules"],
        ["explain", "VS101"],
        ["check", "--help"],
        ["recalibrate", "--help"],
        ["check", "nosuch.py:f", "--select", "VS999"],
    ],
)
def test_light_verbs_do_not_import_torch(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stderr.endswith(("0 []", "2 []"))


def test_the_console_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="varshift")
    assert script.load().__name__ == "main"


def test_without_the_extra_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['typer'] = None\nfrom varshift.cli import main\nsys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == 'varshift: error: the command line needs typer: pip install "varshift[cli]".\n'


def test_help_lists_the_verbs_with_and_without_being_asked(run):
    for words in ((), ("--help",)):
        result = run(*words)
        assert result.code == 0
        for verb in ("check", "recalibrate", "explain", "rules", "demo"):
            assert f" {verb} " in result.out


def test_version(run):
    assert run("--version").out == f"varshift {__version__}\n"


def test_rules_lists_every_rule(run):
    result = run("rules")
    assert result.code == 0
    for rule in all_rules():
        assert f"{rule.code} " in result.out
        assert rule.name in result.out


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_explain_prints_the_page_as_markdown_when_piped(run, rule):
    for word in (rule.code, rule.code.lower(), rule.name):
        result = run("explain", word)
        assert (result.code, result.out) == (0, rule.page())


def test_explain_renders_the_page_in_a_terminal(run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = run("explain", "VS101").out
    assert "## " not in out
    assert "What it does" in out


def test_explain_suggests_near_codes(refused):
    assert "did you mean VS101" in refused("explain", "VS1O1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chek"], "varshift: error: No such command 'chek'"),
        (["check"], "varshift check: error: Missing argument 'TARGET'. See `varshift check --help`."),
        (["check", "x:y", "--frob"], "varshift check: error: No such option: --frob"),
        (["check", "x:y", "--batches", "0"], "Invalid value for '--batches'"),
        (["check", "x:y", "--estimator", "mean"], "Invalid value for '--estimator'"),
    ],
)
def test_wrong_usage_is_one_line(refused, words, message):
    assert message in refused(*words)


def test_an_interrupt_is_no_error(run, monkeypatch):
    def interrupt(code):
        raise KeyboardInterrupt

    monkeypatch.setattr("varshift.rules.get_rule", interrupt)
    result = run("explain", "VS101")
    assert (result.code, result.err) == (130, "varshift: interrupted.\n")


def test_a_fault_of_ours_is_one_line_too_and_verbose_shows_where(run, monkeypatch, file):
    monkeypatch.setattr("varshift.check", lambda *args, **kwargs: 1 / 0, raising=False)
    result = run("check", "nets:build")
    assert result.code == 2
    assert result.err.startswith("varshift: error: ZeroDivisionError: division by zero")
    assert result.err.endswith("(--verbose shows the traceback)\n")
    verbose = run("check", "nets:build", "--verbose")
    assert verbose.err.startswith("Traceback")
    assert verbose.err.splitlines()[-1].startswith("varshift: error: ZeroDivisionError")
