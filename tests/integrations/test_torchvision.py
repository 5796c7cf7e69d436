import subprocess
import sys

import pytest

pytestmark = pytest.mark.zoo


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_torchvision_and_timm_import_after_the_declaration():
    out = run(
        "from varshift.integrations import declare_torchvision_operators as declare\n"
        "first = declare(); import torchvision, timm, torch\n"
        "has = torchvision.extension._has_ops()\n"
        "print(first == (not has), declare() == first, hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert out == ["True", "True", "True"]


def test_a_failed_import_can_be_repeated_after_the_declaration():
    out = run(
        "import torch\n"
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from varshift.integrations import declare_torchvision_operators as declare\n"
        "declare(); import torchvision\n"
        "print(torchvision.models.resnet18().fc.out_features)"
    )
    assert out == ["1000"]


def test_it_completes_a_declaration_somebody_else_began():
    out = run(
        "import torch\n"
        "from torch import library\n"
        "from varshift.integrations._torchvision import _SCHEMAS, _loads, declare_torchvision_operators\n"
        "if _loads():\n    print('True True')\n"
        "else:\n"
        "    mine = library.Library('torchvision', 'DEF'); mine.define(_SCHEMAS['nms'])\n"
        "    print(declare_torchvision_operators(), hasattr(torch.ops.torchvision, 'qnms'))\n"
    )
    assert out == ["True", "True"]


def test_it_does_nothing_without_torchvision_or_when_its_operators_are_there():
    out = run(
        "import sys, torch\n"
        "from torch import library\n"
        "sys.modules['torchvision'] = None\n"
        "from varshift.integrations import declare_torchvision_operators as declare\n"
        "print(declare(), hasattr(torch.ops.torchvision, 'nms'))\n"
        "del sys.modules['torchvision']\n"
        "mine = library.Library('torchvision', 'DEF')\n"
        "mine.define('nms(Tensor a, Tensor b, float c) -> Tensor')\n"
        "mine.define('qnms(Tensor a, Tensor b, float c) -> Tensor')\n"
        "print(declare())"
    )
    assert out == ["False", "False", "False"]


def test_importing_varshift_declares_nothing():
    out = run(
        "import varshift, varshift.integrations, torch\n"
        "from varshift.integrations import _torchvision\n"
        "print(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert out == ["False"]
