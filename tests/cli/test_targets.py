import os

import pytest
from torch import nn

from varshift import VarshiftError
from varshift.cli._arguments import parse_arguments, parse_shapes
from varshift.cli._models import resolve_model
from varshift.cli._objects import resolve_object


@pytest.fixture
def resolve(place, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda target, **arguments: resolve_model(target, arguments)


@pytest.mark.parametrize("prefix", ["nets", "nets.py", "./nets.py", os.path.join("{here}", "nets.py")])
@pytest.mark.parametrize("name", ["build", "Net", "instance"])
def test_functions_classes_and_networks_are_found(resolve, place, prefix, name):
    assert type(resolve(f"{prefix.format(here=place)}:{name}")).__name__ == "Net"


def test_arguments_reach_the_callable(resolve):
    net = resolve("nets:build", p=0.25, width=16)
    assert (net.drop.p, net.norm.num_features) == (0.25, 16)


def test_names_may_have_dots(resolve, file):
    file(
        "deep.py",
        "from torch import nn\nclass Zoo:\n    net = nn.Linear(2, 2)\n    make = lambda: nn.ReLU()\n",
    )
    assert isinstance(resolve("deep:Zoo.net"), nn.Linear)
    assert isinstance(resolve("deep.py:Zoo.make"), nn.ReLU)


def test_a_file_in_a_package_may_import_relatively(resolve, file):
    file("src/pkg/__init__.py", "")
    file("src/pkg/parts/__init__.py", "")
    file("src/pkg/parts/blocks.py", "from torch import nn\nBlock = nn.ReLU\n")
    file("src/pkg/models.py", "from .parts.blocks import Block\ndef build():\n    return Block()\n")
    assert isinstance(resolve("src/pkg/models.py:build"), nn.ReLU)
    assert type(resolve("src/pkg/models.py:build")).__module__.startswith("torch")


def test_a_lone_file_may_import_its_neighbours(resolve, file):
    file("scripts/helper.py", "WIDTH = 5\n")
    file(
        "scripts/make.py",
        "import helper\nfrom torch import nn\ndef build():\n    return nn.Linear(helper.WIDTH, 1)\n",
    )
    assert resolve("scripts/make.py:build").in_features == 5


@pytest.mark.parametrize("name", ["code.py", "torch.py", "my-net.py", "1st.py"])
def test_a_file_may_be_called_like_anything(resolve, file, name):
    import sys

    import torch

    file(f"odd/{name}", "from torch.nn import ReLU\n")
    assert isinstance(resolve(f"odd/{name}:ReLU"), nn.ReLU)
    assert sys.modules["torch"] is torch


def test_a_file_is_executed_once_for_all_options(resolve, file):
    file("once.py", "from torch import nn\ntoken = nn.ReLU()\n")
    assert resolve("once.py:token") is resolve_object("./once.py:token", "--data")


def test_a_file_that_failed_is_not_half_imported(resolve, file):
    path = file("flaky.py", "token = 1\nraise ValueError('first time')\n")
    with pytest.raises(VarshiftError, match="first time"):
        resolve("flaky.py:token")
    path.write_text("from torch.nn import ReLU\n")
    assert isinstance(resolve("flaky.py:ReLU"), nn.ReLU)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("netz:build", "there is no module 'netz'; did you mean 'nets'"),
        ("torch.nnn:Linear", "'torch' has no module 'nnn'; did you mean 'nn'"),
        ("nets:biuld", "'nets' has no 'biuld'; did you mean 'build'?"),
        ("nets.py:Nett", "'nets.py' has no 'Nett'; did you mean 'Net'"),
        ("nest.py:build", "there is no file 'nest.py'; did you mean 'nets.py'?"),
        ("sub/nets.py:build", "there is no file 'sub/nets.py'"),
        ("nets.py", "write 'nets.py:NAME'"),
        ("nets", "write 'package.module:NAME'"),
        ("nets:", "does not say which object is meant"),
        (":build", "does not say which object is meant"),
        ("my net:build", "neither a module's name nor a file"),
        ("nets:number", "is an int, not a network or a callable that makes one"),
        ("nets:pair", "returned a tuple with a Net at 0: name a function that returns the network alone"),
        ("nets:mapping", "returned a dict with a Net at 'model'"),
        ("nets:nothing", "returned None, not a torch.nn.Module"),
        ("nets:Needy", "missing a required argument: 'size'"),
        ("nets:broken", "calling nets:broken failed: KeyError: 'no such thing' (nets.py:"),
    ],
)
def test_wrong_targets(refused, target, message):
    assert message in refused("check", target, "--shape", "4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nonexistent_package\n",
            "ModuleNotFoundError: No module named 'nonexistent_package' (mine.py:1)",
        ),
        ("x = 1\nfrom torch import nosuchname\n", "ImportError: cannot import name 'nosuchname'"),
        ("def f(:\n", "SyntaxError: invalid syntax (mine.py:1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (mine.py:2)"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", "ValueError: a (mine.py:2)"),
    ],
)
@pytest.mark.parametrize("target", ["mine.py:build", "mine:build"])
def test_errors_in_the_users_file(refused, run, file, text, message, target):
    file("mine.py", text)
    error = refused("check", target)
    assert f"importing {target[:-6]} failed: {message}" in error
    assert error.endswith("(--verbose shows the traceback)")
    verbose = run("check", target, "-v").err
    assert verbose.splitlines()[-1].startswith("varshift: error: target: importing")
    assert "cli" + os.sep not in verbose
    assert "mine.py" in "".join(verbose.splitlines()[:2])


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("p", "'p' must read KEY=VALUE"),
        ("=3", "'=3' must read KEY=VALUE"),
        ("a b=3", "'a b=3' must read KEY=VALUE"),
        ("widht=3", "has no argument 'widht'; did you mean 'width'? It takes p, width."),
    ],
)
def test_wrong_arguments(refused, arg, message):
    assert message in refused("check", "nets:build", "--arg", arg)


def test_arguments_for_a_network_that_takes_none(refused):
    assert "is a network already" in refused("check", "nets:instance", "--arg", "p=0.1")


def test_values_are_literals_where_they_read_as_such():
    texts = ["a=0.2", "b=[1, 2]", "c=name", "d='x'", "e=True", "f=none", "g=a=b", "h=", "i=false", "j-k=(1,)"]
    assert parse_arguments(texts) == {
        "a": 0.2,
        "b": [1, 2],
        "c": "name",
        "d": "x",
        "e": True,
        "f": None,
        "g": "a=b",
        "h": "",
        "i": False,
        "j_k": (1,),
    }
    with pytest.raises(VarshiftError, match="'a' is given twice"):
        parse_arguments(["a=1", "a=2"])


def test_shapes():
    assert parse_shapes(["3,224,224", "3x32x32", "(5,)", "7"]) == [(3, 224, 224), (3, 32, 32), (5,), (7,)]
    assert parse_shapes(None) is None
    for text in ("", "a,b", "3,-1", "0", "3,2.5", ","):
        with pytest.raises(VarshiftError, match="--shape"):
            parse_shapes([text])


@pytest.mark.parametrize("device", ["cudda", "meta", "cpu:x", "cuda:99"])
def test_unknown_devices(refused, device):
    error = refused("check", "nets:build", "--device", device)
    assert f"--device: '{device}' cannot be used here" in error
    assert "Usable: cpu" in error


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("timm:resnet5o", "timm has no model 'resnet5o'; did you mean 'resnet50'"),
        ("torchvision:resnet5o", "torchvision has no model 'resnet5o'; did you mean 'resnet50'"),
    ],
)
def test_unknown_names_in_the_zoo(refused, target, message):
    assert message in refused("check", target)


@pytest.mark.zoo
def test_arguments_the_zoo_does_not_know(refused):
    for target in ("timm:resnet18", "torchvision:resnet18"):
        error = refused("check", target, "--arg", "frob=3")
        assert f"building {target} with frob=3 failed: TypeError" in error
        assert "'frob'" in error


@pytest.mark.zoo
def test_networks_of_the_zoo(resolve):
    from varshift.cli._zoo import default_shape

    net = resolve("timm:resnet18", num_classes=7)
    assert net.fc.out_features == 7
    assert default_shape("timm:resnet18", net) == (3, 224, 224)
    net = resolve("torchvision:inception_v3", init_weights=False)
    assert default_shape("torchvision:inception_v3", net) == (3, 299, 299)
    # A segmentation network takes any size, and its backbone's weights must not be fetched either.
    net = resolve("torchvision:lraspp_mobilenet_v3_large", num_classes=2)
    assert default_shape("torchvision:lraspp_mobilenet_v3_large", net) is None


def test_a_zoo_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setattr("varshift.cli._zoo.find_spec", lambda name: None)
    for zoo in ("timm", "torchvision"):
        assert f'{zoo}: targets need {zoo}: pip install "varshift[zoo]".' in refused(
            "check", f"{zoo}:resnet18"
        )


@pytest.mark.zoo
def test_a_users_file_may_import_torchvision_next_to_any_torch(file, place):
    import subprocess
    import sys

    text = (
        "from torchvision.models import squeezenet1_1 as net\ndef build():\n    return net(num_classes=2)\n"
    )
    file("vision.py", text)
    words = ["check", "vision.py:build", "--shape", "3,64,64", "--json", "r.json"]
    code = f"import sys; from varshift.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert (place / "r.json").exists()
