"""The page on own models: every command runs on the files that it shows."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "own-model.md"


def test_the_commands_run(run, place, file, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL):
        file(name, code)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    import nets

    net = nets.build()
    state = net.state_dict()
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, "best.pt")
    pair = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in state.items()}
    torch.save(pair, "pair.pt")
    torch.save({"model": net}, "whole.pt")
    commands = re.findall(r"^    varshift (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        result = run(*shlex.split(command))
        assert result.code in (0, 1), (command, result.err)
