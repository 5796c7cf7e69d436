"""Settings in pyproject.toml: where they are looked for, what they mean, and what is refused."""

from __future__ import annotations

import pytest

from varshift import VarshiftError
from varshift.rules import Config, all_rules, load_config


def write(folder, text):
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_everything_is_at_its_default(tmp_path):
    assert load_config(tmp_path) == Config()
    assert "VS101" in Config().selection()


def test_all_keys_are_read(tmp_path):
    path = write(
        tmp_path,
        '[tool.varshift]\nselect = ["VS1"]\nignore = ["VS107"]\nextend-select = ["VS401"]\n'
        'extend-ignore = ["VS106"]\nfail-on = "error"\nexit-zero = true\nintended = ["sampler"]\n',
    )
    config = load_config(tmp_path)
    assert config == Config(("VS1",), ("VS107",), ("VS401",), ("VS106",), "error", True, ("sampler",), path)
    placement = {rule.code for rule in all_rules() if rule.code.startswith("VS1")}
    assert set(config.selection()) == placement - {"VS106", "VS107"} | {"VS401"}


def test_a_selection_from_the_command_line_replaces_that_of_the_file_but_not_its_extensions(tmp_path):
    write(tmp_path, '[tool.varshift]\nselect = ["VS1"]\nignore = ["VS2"]\nextend-ignore = ["VS302"]\n')
    config = load_config(tmp_path)
    families = {
        family: {rule.code for rule in all_rules() if rule.code.startswith(family)}
        for family in ("VS2", "VS3")
    }
    assert set(config.selection(select=["VS3"])) == families["VS3"] - {"VS302"}
    assert set(config.selection(select=["VS2"], ignore=[])) == families["VS2"]
    assert "VS101" not in config.selection(ignore=["VS101"])


def test_the_nearest_file_with_the_table_counts(tmp_path):
    outer = write(tmp_path, '[tool.varshift]\nselect = ["VS1"]\n')
    inner = tmp_path / "package"
    deepest = inner / "module"
    deepest.mkdir(parents=True)
    write(inner, "[tool.other]\nselect = []\n")
    assert load_config(deepest).path == outer
    nearer = write(inner, "[tool.varshift]\nexit-zero = true\n")
    assert load_config(deepest).path == nearer
    assert load_config(deepest / "file.py").path == nearer
    assert load_config(deepest).select is None


def test_the_working_folder_is_the_default(tmp_path, monkeypatch):
    path = write(tmp_path, '[tool.varshift]\nignore = ["VS3"]\n')
    monkeypatch.chdir(tmp_path)
    assert load_config().path == path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[tool.varshift]\nselct = ["VS1"]', "unknown key 'selct'. Did you mean 'select'"),
        ("[tool.varshift]\nexit_zero = true", "unknown key 'exit_zero'. Did you mean 'exit-zero'"),
        ("[tool.varshift]\ncolour = true", "unknown key 'colour'. It knows select, ignore"),
        ('[tool.varshift]\nselect = "VS1"', "select='VS1'"),
        ("[tool.varshift]\nignore = [101]", r"ignore=\[101\]"),
        ("[tool.varshift]\nexit-zero = 1", "exit-zero=1"),
        ('[tool.varshift]\nfail-on = "never"', "fail-on='never'.*'error', 'warning', 'advice'"),
        ('[tool.varshift]\nignore = ["VS109"]', "ignore in .*'VS109' is not a rule code"),
        ("[tool]\nvarshift = 3", "must be a table"),
        ("[tool.varshift\n", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_file_and_key(tmp_path, text, complaint):
    path = write(tmp_path, text)
    with pytest.raises(VarshiftError, match=complaint) as caught:
        load_config(tmp_path)
    assert str(path) in str(caught.value)
