"""Files are looked for before torch is imported; the options of weights reach every verb."""

import json
import subprocess
import sys

import pytest

WRONG = [
    (["check", "nest.py:build"], "there is no file 'nest.py'; did you mean 'nets.py'?"),
    (["check", "netz:build"], "there is no module 'netz'; did you mean 'nets'"),
    (["check", "nets"], "does not say which object is meant"),
    (["check", "nets:build", "--weights", "nope.pt"], "--weights: there is no file 'nope.pt'"),
    (["check", "nets:build", "--weights", "."], "--weights: '.' is a folder without"),
    (["check", "nets:build", "--prefix", "a"], "--prefix: there is no file to look in"),
    (["check", "nets:build", "--weights-key", "a"], "--weights-key: there is no file to look in"),
    (["check", "nets:build", "--data", "dada.py:loader"], "--data: there is no file 'dada.py'"),
    (["check", "nets:build", "--reference-weights", "nope.pt"], "--reference-weights: there is no file"),
    (["fix", "nets:build", "--out", "cured", "--data", "dada.py:f"], "--data: there is no file"),
    (["recalibrate", "nest.py:build", "--out", "a.pt"], "target: there is no file 'nest.py'"),
    (["compare", "nest.py:build", "--data", "nets:loader"], "target: there is no file 'nest.py'"),
    (
        ["compare", "nets:build", "--data", "nets:loader", "--val-data", "v.py:f"],
        "--val-data: there is no file",
    ),
]


def test_what_is_not_there_is_said_before_torch_is_imported(place):
    code = """
import contextlib, io, json, sys
from varshift.cli import main
said = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = main(words)
    said.append((code, error.getvalue(), "torch" in sys.modules))
print(json.dumps(said))
"""
    words = json.dumps([words for words, _ in WRONG])
    done = subprocess.run(
        [sys.executable, "-c", code], input=words, capture_output=True, text=True, check=True, cwd=place
    )
    for (words, message), (rc, error, imported) in zip(WRONG, json.loads(done.stdout), strict=True):
        assert rc == 2, words
        assert message in error, words
        assert not imported, words


@pytest.fixture
def checkpoint(place, monkeypatch):
    """A file as research code writes it: two networks with prefixes, and an object of the project's own."""
    import torch

    from varshift.cli._objects import resolve_object

    monkeypatch.setattr(sys, "path", list(sys.path))
    net = resolve_object("nets:trained", "target")()
    state = {
        f"{name}.{key}": value for name in ("student", "teacher") for key, value in net.state_dict().items()
    }
    torch.save({"state_dict": state, "args": net.drop}, place / "w.pt")
    return "w.pt"


def test_check_reads_what_is_trusted_and_takes_one_network(run, refused, checkpoint):
    words = ["check", "nets:Net", "--weights", checkpoint, "--data", "nets:loader", "--exit-zero"]
    assert "(torch.nn.modules.dropout.Dropout)" in refused(*words)
    missing = run(*words, "--trust")
    assert missing.code == 2
    assert "It fits with --prefix student. or --prefix teacher." in missing.err
    result = run(*words, "--trust", "--prefix", "student")
    assert result.code == 0
    assert "warning: --trust: w.pt" in result.err
    assert "--trust --prefix student" in result.out


def test_keys_without_a_place_are_noted_unless_strict(run, refused, place, checkpoint):
    import torch

    content = torch.load(checkpoint, weights_only=False)["state_dict"]
    state = {key.removeprefix("student."): value for key, value in content.items() if "student" in key}
    torch.save({**state, "criterion.weight": torch.ones(3)}, place / "own.pt")
    words = ["recalibrate", "nets:Net", "--weights", "own.pt", "--data", "nets:loader", "--out", "new.pt"]
    assert "1 unexpected: criterion.weight" in refused(*words, "--strict")
    result = run(*words)
    assert result.code == 0, result
    assert "which were ignored (--strict refuses them): criterion.weight" in result.err
    assert torch.load(place / "new.pt", weights_only=True)["criterion.weight"].equal(torch.ones(3))


def test_a_fix_names_weights_as_they_were_read(run, place, checkpoint):
    words = ["--weights", checkpoint, "--trust", "--prefix", "student", "--data", "nets:loader"]
    result = run("fix", "nets:Net", *words, "--cure", "remove-noise", "--out", "cured")
    assert result.code in (0, 1), result
    assert (place / "cured" / "apply.py").is_file()
    assert "--trust" in json.loads((place / "cured" / "before.json").read_text())["repeat"]


def test_arguments_reach_the_function_of_the_data(run, refused, file):
    file("own.py", "import nets\ndef get_loaders(size):\n    return nets.loader()[:size], nets.loader()\n")
    words = ["check", "nets:Net", "--exit-zero", "--data", "own:get_loaders[0]"]
    assert "give the rest with --data-arg KEY=VALUE" in refused(*words)
    assert "--data-arg: 'own:get_loaders' has no argument 'sise'" in refused(*words, "--data-arg", "sise=2")
    assert "--data-arg: there is no function to call" in refused("check", "nets:Net", "--data-arg", "a=1")
    assert "is no function and takes no arguments" in refused(
        "check", "nets:Net", "--data", "nets:number", "--data-arg", "a=1"
    )
    result = run(*words, "--data-arg", "size=2", "--deploy", "own:get_loaders[1]")
    assert result.code == 0, result
    assert "--data-arg size=2" in result.out
    result = run("recalibrate", "nets:Net", *words[3:], "--data-arg", "size=2", "--out", "a.pt", "--force")
    assert result.code == 0, result


def test_a_factory_that_needs_a_configuration_shows_the_lines_to_write(refused, run, file):
    file("own.py", "import nets\ndef make(cfg):\n    return nets.Net(width=cfg.width)\n")
    lines = refused("check", "own.py:make").split("`")[1::2]
    assert len(lines) == 4
    file("wrapped.py", "\n".join([*lines[:3], "    " + lines[3].strip()]) + "\n")
    result = run("check", "wrapped.py:network", "--shape", "4", "--exit-zero")
    assert result.code == 0, result
