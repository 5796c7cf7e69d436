"""What a check writes to standard output for a service, and what it compares with."""

import json

import pytest


@pytest.mark.parametrize("form", ["concise", "json", "github", "gitlab", "sarif", "junit", "md"])
def test_a_format_stands_alone_on_standard_output(run, file, form):
    file("chatty.py", "print('importing')\nfrom nets import *\n")
    result = run("check", "chatty:build", "--shape", "4", "--select", "VS1", "--output-format", form)
    starts = {
        "concise": "nets.py:14: ",
        "json": "{",
        "github": "::",
        "gitlab": "[",
        "sarif": "{",
        "junit": "<?xml",
        "md": "## varshift: chatty:build",
    }
    assert (result.code, result.err) == (1, "importing\n")
    assert result.out.startswith(starts[form])
    assert "VS101" in result.out


def test_annotations_bring_a_page_for_the_job(run, place, monkeypatch):
    page = place / "step_summary_1"
    page.write_text("# Another step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    result = run("check", "nets:build", "--shape", "4", "--output-format", "github")
    assert "file=nets.py,line=14" in result.out
    assert page.read_text().startswith("# Another step\n## varshift: nets:build\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "no" / "folder"))
    result = run("check", "nets:build", "--shape", "4", "--output-format", "github")
    assert (result.code, "GITHUB_STEP_SUMMARY: cannot write" in result.err) == (2, True)


def test_only_what_is_new_against_a_baseline_fails(run, place):
    words = ("check", "nets:build", "--shape", "4")
    assert run(*words, "--select", "VS1", "--output", "base.json").code == 1
    same = run(*words, "--select", "VS1", "--baseline", "base.json", "--output", "next.json")
    assert same.code == 0
    assert "1 finding of the baseline base.json left out" in same.err
    assert "Nothing new found; 1 finding of the baseline left out." in same.out
    kept = json.loads((place / "next.json").read_text())["findings"]
    assert [finding["code"] for finding in kept] == ["VS101"]
    more = run(*words, "--baseline", "base.json", "--output-format", "concise", "--fail-on", "advice")
    assert more.code == 1
    assert "VS201" in more.out
    assert "VS101" not in more.out
    assert more.out.endswith("New: 1 piece of advice. 1 finding of the baseline left out.\n")


def test_a_baseline_must_be_a_report(refused, place):
    (place / "other.json").write_text('{"schema": "sarif"}')
    assert "no version of a report" in refused("check", "nets:build", "--baseline", "other.json")
    assert "cannot read 'none.json'" in refused("check", "nets:build", "--baseline", "none.json")


def test_quiet_leaves_files_and_the_exit_status(run, place):
    result = run("check", "nets:build", "--shape", "4", "--quiet", "--output", "r.md")
    assert (result.code, result.out, result.err) == (1, "", "")
    assert (place / "r.md").read_text().startswith("## varshift")


@pytest.mark.parametrize(("name", "start"), [("r.sarif", "{"), ("r.xml", "<?xml"), ("r.md", "## varshift")])
def test_files_by_their_ending(run, place, name, start):
    run("check", "nets:build", "--shape", "4", "--select", "VS1", "--output", name)
    assert (place / name).read_text().startswith(start)


@pytest.mark.parametrize(("words", "failures"), [((), "1"), (("--fail-on", "error"), "0")])
def test_what_fails_in_junit_is_what_makes_the_check_fail(run, words, failures):
    result = run("check", "nets:slow", "--select", "VS204", "--output-format", "junit", *words)
    assert result.code == int(failures)
    assert f'failures="{failures}"' in result.out


@pytest.mark.parametrize(
    "words",
    [
        ("--quiet", "--output-format", "github"),
        ("--quiet", "--json", "-"),
        ("--json", "-", "--output-format", "concise"),
    ],
)
def test_standard_output_has_one_user(refused, words):
    assert "exclude one another" in refused("check", "nets:build", *words)


def test_names_of_modules_do_nothing_to_a_terminal(run, file):
    file(
        "odd.py",
        """
        from torch import nn
        from nets import loader

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.add_module("a\\x1b]0;title\\x07\\u202e", nn.BatchNorm1d(4))

            def forward(self, x):
                return next(self.children())(x)
        """,
    )
    words = ("odd:Net", "--data", "odd:loader")
    results = [
        run("check", *words, "--select", "VS201"),
        run("check", *words, "--select", "VS201", "--output-format", "github"),
        run("recalibrate", *words, "--out", "w.safetensors", "--full"),
    ]
    assert all("a]0;title" in result.out for result in results), results
    for result in results:
        assert not {"\x1b", "\x07", "\u202e"} & set(result.out + result.err)
