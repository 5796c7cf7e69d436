from importlib.metadata import EntryPoint

import pytest

VERBS = """
    import typer

    def hello(name: str = "you", loud: bool = False) -> int:
        '''Say hello.'''
        print(("HELLO " if loud else "hello ") + name)
        return 0

    def findings() -> int:
        '''Find something.'''
        return 1

    def quiet():
        '''Return nothing.'''

    def refuses():
        '''Refuse.'''
        from varshift import VarshiftError

        raise VarshiftError("the moon is full.")

    app = typer.Typer()

    @app.command()
    def inner(times: int = 1):
        print("inner " * times)

    constant = 3
"""


@pytest.fixture
def verbs(file, place, monkeypatch):
    """Makes entry points to functions of `extra.py`."""
    file("extra.py", VERBS)
    file("broken.py", "raise RuntimeError('wrong version')\n")
    monkeypatch.syspath_prepend(str(place))

    def install(**targets):
        entries = [EntryPoint(name, value, "varshift.verbs") for name, value in targets.items()]
        monkeypatch.setattr("varshift.cli._entry_points.entry_points", lambda group: entries)

    return install


def test_a_function_becomes_a_verb_with_its_own_options_and_help(run, verbs):
    verbs(hello="extra:hello")
    assert run("hello").out == "hello you\n"
    assert run("hello", "--loud", "--name", "world").out == "HELLO world\n"
    help_text = run("hello", "--help").out
    assert "Say hello." in help_text
    assert "--loud" in help_text
    assert "varshift hello" in help_text


def test_exit_codes_of_other_verbs_are_kept(run, verbs):
    verbs(findings="extra:findings", quiet="extra:quiet")
    assert run("findings").code == 1
    assert run("quiet").code == 0


def test_a_whole_app_can_be_a_verb(run, verbs):
    verbs(inner="extra:app")
    assert run("inner", "--times", "2").out == "inner inner \n"


def test_errors_and_usage_of_other_verbs_are_one_line(refused, verbs):
    verbs(refuses="extra:refuses", hello="extra:hello", constant="extra:constant")
    assert refused("refuses") == "varshift: error: the moon is full."
    assert "varshift hello: error: No such option: --lord" in refused("hello", "--lord")
    assert "is a int, not a function" in refused("constant")


@pytest.mark.parametrize("value", ["broken:verb", "extra:nothing", "nowhere.at.all:verb"])
def test_a_broken_verb_is_listed_and_warned_about_only_when_used(run, verbs, value):
    verbs(odd=value, hello="extra:hello")
    listed = run("--help")
    assert (listed.code, listed.err) == (0, "")
    assert " odd " in listed.out
    assert run("rules").err == ""
    used = run("odd", "--anything")
    assert used.code == 2
    assert used.err.startswith(f"varshift: warning: the verb 'odd' of {value} is broken: ")
    assert "Traceback" not in used.err


def test_other_packages_cannot_replace_our_verbs(run, verbs):
    verbs(rules="extra:hello", check="broken:verb")
    assert "VS101" in run("rules").out


def test_listing_verbs_imports_none_of_them(run, verbs):
    import sys

    verbs(hello="extra:hello")
    run("--help")
    assert "extra" not in sys.modules
