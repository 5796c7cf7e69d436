import sys
import textwrap
from types import SimpleNamespace

import pytest

NETS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, p=0.5, width=8, kind="plain"):
            super().__init__()
            self.first = nn.Linear(4, width)
            self.drop = nn.Dropout(p)
            self.norm = nn.BatchNorm1d(width)
            self.last = nn.Linear(width, 3)

        def forward(self, x):
            return self.last(self.norm(self.drop(torch.tanh(self.first(x)))))

    class Needy(nn.Module):
        def __init__(self, size):
            super().__init__()

    def build(p=0.5, width=8):
        return Net(p, width)

    def trained(p=0.5):
        torch.manual_seed(0)
        net = Net(p)
        net.norm.momentum = None
        with torch.no_grad():
            for x, _ in loader():
                net(x)
        net.norm.momentum = 0.1
        return net

    def loader():
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(256, 4, generator=generator)
        return [(part, (part[:, 0] > 0).long()) for part in x.split(64)]

    def darker():
        return [(x * 0.1 - 2, y) for x, y in loader()]

    def slow():
        net = Net()
        net.norm.momentum = 0.99
        return net

    instance = Net()
    number = 3

    def pair():
        return Net(), "tokenizer"

    def mapping():
        return {"model": Net()}

    def nothing():
        return None

    def broken(p=0.5):
        raise KeyError("no such thing")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with `nets.py`; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "nets.py", NETS)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.fixture
def file(place):
    """Writes a file into the working directory."""
    return lambda name, text: write(place / name, text)


@pytest.fixture
def run(place, capsys):
    """Runs the command line in this process."""
    from varshift.cli import main

    def run(*words):
        path = list(sys.path)
        code = main([str(word) for word in words])
        assert sys.path == path
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


def times(place):
    """When each file was written, bytecode aside."""
    files = (path for path in place.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.fixture
def refused(run, place):
    """Runs the command line and makes sure that it refuses with one line, and leaves nothing behind."""

    def refused(*words):
        before = {
            path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts
        }
        result = run(*words)
        assert result.code == 2, result
        assert result.out == ""
        assert result.err.startswith("varshift")
        assert result.err.count("\n") == 1, result.err
        assert "Traceback" not in result.err
        after = {
            path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts
        }
        assert after == before
        return result.err.strip()

    return refused
