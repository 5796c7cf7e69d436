"""`varshift fix`: the folder that it writes, what it prints, and when it refuses."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import varshift as vs

NETS = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self, rate=0.5, width=32):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(8, width), nn.Dropout(rate), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Linear(width, width), nn.Dropout(rate), nn.BatchNorm1d(width), nn.ReLU(),
            )
            self.head = nn.Linear(width, 4)

        def forward(self, x):
            return self.head(self.body(x))

    class Zoo:
        @staticmethod
        def build(rate=0.5):
            return Net(rate)

    def build(rate=0.5, width=32):
        return Net(rate, width)

    def batches():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(768, 8, generator=generator).exp()
        y = (x[:, 0] > x[:, 1]).long() + 2 * (x[:, 2] > x[:, 3]).long()
        return list(zip(x.split(64), y.split(64)))

    def trained(rate=0.5):
        torch.manual_seed(0)
        net = Net(rate)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(8):
            for x, y in batches():
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        return net
"""

WORDS = ("fix", "sick.py:build", "--data", "sick.py:batches", "--weights")
FILES = {"weights.safetensors", "plan.json", "before.json", "after.json", "apply.py"}


@pytest.fixture(scope="module")
def states():
    """State dicts of the network after a short training, sick and healthy."""
    import textwrap

    space = {}
    exec(textwrap.dedent(NETS), space)
    return {rate: space["trained"](rate).state_dict() for rate in (0.5, 0.0)}


@pytest.fixture
def sick(file, states):
    """The network in a file of its own, with weights; returns the keys and tensors of the file."""
    file("sick.py", NETS)
    save_file(states[0.5], "in.safetensors")
    save_file(states[0.0], "healthy.safetensors")
    return states[0.5]


def rebuilt(folder, statements, cwd):
    """What statements print in another process, in the folder of the script."""
    code = f"from apply import build; import torch; net = build(); {statements}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd / folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def outputs(folder, cwd):
    """Outputs of the rebuilt network in evaluation, from a process of its own."""
    path = cwd / "outputs.pt"
    rebuilt(
        folder,
        f"torch.manual_seed(3); net.eval(); torch.save(net(torch.randn(16, 8)).detach(), {str(path)!r})",
        cwd,
    )
    return torch.load(path, weights_only=True)


def test_the_folder_rebuilds_the_cured_network_bit_for_bit(run, place, sick):
    result = run(*WORDS, "in.safetensors", "--out", "cured")
    assert (result.code, result.err) == (0, "")
    assert {path.name for path in (place / "cured").iterdir()} == FILES
    assert set(load_file("cured/weights.safetensors")) == set(sick)
    from sick import batches, build

    net = build()
    net.load_state_dict(load_file("in.safetensors"))
    cured = vs.fix(net, loader=batches())
    assert cured.changes
    torch.manual_seed(3)
    x = torch.randn(16, 8)
    expected = cured.model.eval()(x).detach()
    assert torch.equal(outputs("cured", place), expected)
    assert not torch.equal(net.eval()(x), expected)


def test_the_reports_the_plan_and_the_text_agree(run, place, sick):
    result = run(*WORDS, "in.safetensors", "--out", "cured")
    before, after = (vs.Report.from_json(f"cured/{name}.json") for name in ("before", "after"))
    assert "VS101" in before.findings_by_code
    assert "VS101" not in after.findings_by_code
    data = "--data sick.py:batches"
    assert before.repeat == f"varshift check sick.py:build --weights in.safetensors {data}"
    assert after.repeat == f"varshift check cured/apply.py:build {data}"
    changes = json.loads((place / "cured" / "plan.json").read_text())["changes"]
    assert changes
    text = " ".join(result.out.split())
    for change in changes:
        assert change["before"] in text
        assert change["after"] in text
    assert "Gone: VS101 noise-feeds-norm" in text
    assert "Written to cured: weights.safetensors, plan.json, before.json, after.json, apply.py." in text
    assert after.repeat in text


def test_the_reports_repeat_the_seed_and_the_rules_too(run, place, sick):
    rules = "--ignore VS2 --seed 7"
    assert run(*WORDS, "in.safetensors", *rules.split(), "--out", "cured").code == 0
    before, after = (vs.Report.from_json(f"cured/{name}.json") for name in ("before", "after"))
    data = f"--data sick.py:batches {rules}"
    assert before.repeat == f"varshift check sick.py:build --weights in.safetensors {data}"
    assert after.repeat == f"varshift check cured/apply.py:build {data}"


def test_the_cured_network_is_a_target_of_its_own(run, sick):
    run(*WORDS, "in.safetensors", "--out", "cured")
    result = run("check", "cured/apply.py:build", "--data", "sick.py:batches")
    assert result.code == 0, result.out
    assert "VS101" not in result.out


def test_a_dry_run_shows_the_changes_and_writes_nothing(run, place, sick):
    before = sorted(place.rglob("*"))
    result = run(*WORDS, "in.safetensors", "--dry-run")
    assert result.code == 0
    assert "body.2" in result.out
    assert "--out DIR" in result.out
    after = [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts]
    assert after == [path for path in before if "__pycache__" not in path.parts]


def test_a_healthy_network_is_left_alone(run, place, sick):
    result = run(*WORDS, "healthy.safetensors", "--arg", "rate=0.0", "--out", "cured")
    assert result.code == 0
    assert "Nothing to cure" in result.out
    assert "Nothing was written." in result.out
    assert not (place / "cured").exists()


def test_what_is_left_makes_the_exit_status_one(run, sick):
    """Without data the statistics of weights at random cannot be told from others."""
    result = run("fix", "sick.py:build", "--cure", "recalibrate:noise=true", "--shape", "8", "--dry-run")
    assert result.code == 1
    assert "recalibrate needs data" in result.out


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.model."])
def test_keys_stay_as_they_were_in_the_checkpoint(run, place, sick, prefix):
    torch.save({"epoch": 7, "state_dict": {prefix + key: value for key, value in sick.items()}}, "in.pt")
    assert run(*WORDS, "in.pt", "--out", "cured").code == 0
    assert set(load_file("cured/weights.safetensors")) == {prefix + key for key in sick}
    assert outputs("cured", place).shape == (16, 4)


def test_types_stay_as_they_were_in_the_checkpoint_where_that_loses_nothing(run, place, sick):
    half = {key: value.half() if value.is_floating_point() else value for key, value in sick.items()}
    save_file(half, "half.safetensors")
    assert run(*WORDS, "half.safetensors", "--out", "cured").code == 0
    stored = load_file("cured/weights.safetensors")
    assert stored["head.weight"].dtype == torch.float16
    assert torch.equal(stored["head.weight"], half["head.weight"])
    assert stored["body.2.running_var"].dtype == torch.float32


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("sick:build", "from sick import build"),
        ("sick:Zoo.build", "from sick import Zoo"),
        ("sick:Net", "from sick import Net"),
        ("inner/nets.py:build", "from nets import build"),
        ("package.nets:build", "from package.nets import build"),
        ("inner/my-nets.py:build", 'spec_from_file_location("_varshift_my_nets'),
        ("instance:net", "from instance import net"),
    ],
)
def test_every_kind_of_target_is_rebuilt(run, file, place, sick, target, line):
    file("package/__init__.py", "")
    file("package/nets.py", NETS)
    file("inner/nets.py", NETS)
    file("inner/my-nets.py", NETS)
    file("instance.py", "from sick import build\nnet = build()")
    (place / "out").mkdir()
    words = ("--data", "sick:batches", "--weights", "in.safetensors", "--out", "out/cured")
    result = run("fix", target, *words)
    assert (result.code, result.err) == (0, "")
    # The command ran the script in a process of its own before it wrote the folder.
    assert line in (place / "out" / "cured" / "apply.py").read_text()


def test_arguments_are_repeated(run, place, file, sick):
    result = run(*WORDS, "in.safetensors", "--arg", "rate=0.5", "--arg", "width=32", "--out", "cured")
    assert result.code == 0
    assert "return build(rate=0.5, width=32)" in (place / "cured" / "apply.py").read_text()


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("timm:resnet10t", "timm.create_model('resnet10t', drop_rate=0.25, num_classes=5)"),
        ("torchvision:squeezenet1_0", "torchvision.models.get_model('squeezenet1_0', weights=None, "),
    ],
)
def test_networks_of_the_zoos_are_rebuilt(run, place, target, line):
    name = "drop_rate" if target.startswith("timm") else "dropout"
    words = ("--arg", f"{name}=0.25", "--arg", "num_classes=5", "--shape", "3,64,64")
    result = run("fix", target, *words, "--cure", "remove-noise", "--out", "cured")
    assert result.code == 0, result
    assert line in (place / "cured" / "apply.py").read_text()
    text = rebuilt(
        "cured",
        "net.train(); x = torch.randn(2, 3, 64, 64); print(sum(m.p for m in "
        "net.modules() if isinstance(m, torch.nn.Dropout)))",
        place,
    )
    assert text.split()[-1] in ("0", "0.0")


def test_a_folder_with_files_is_refused_and_written_over_only_by_force(run, refused, file, place, sick):
    other, old = file("cured/notes.txt", "mine"), file("cured/plan.json", "old")
    assert "--out: 'cured' has files already: --force" in refused(*WORDS, "in.safetensors", "--out", "cured")
    assert run(*WORDS, "in.safetensors", "--out", "cured", "--force").code == 0
    assert {path.name for path in (place / "cured").iterdir()} == {*FILES, "notes.txt"}
    assert other.read_text() == "mine"
    assert "varshift.plan/1" in old.read_text()


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_half_way_leaves_nothing(run, monkeypatch, file, place, sick, exists):
    if exists:
        file("cured/plan.json", "old")
    folder = place / "cured"
    before = {path: path.read_bytes() for path in folder.rglob("*")}

    def fail(script, model):
        raise vs.VarshiftError("cut short")

    monkeypatch.setattr("varshift.cli._cured_folder._prove", fail)
    result = run(*WORDS, "in.safetensors", "--out", "cured", "--force")
    assert result.code == 2
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before
    assert not [path for path in place.iterdir() if path.name.startswith(".cured")]


def test_files_are_put_back_where_one_cannot_take_its_place(run, monkeypatch, file, place, sick):
    old = [file(f"cured/{name}", f"old {name}") for name in sorted(FILES)]
    replace, failed = os.replace, []

    def fail(source, target):
        if str(target).endswith("cured/after.json") and not failed:
            failed.append(target)
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("varshift.cli._folder.os.replace", fail)
    result = run(*WORDS, "in.safetensors", "--out", "cured", "--force")
    monkeypatch.undo()
    assert result.code == 2
    assert "no space left" in result.err
    assert [path.read_text() for path in old] == [f"old {name}" for name in sorted(FILES)]
    assert not [path for path in place.iterdir() if path.name.startswith(".cured")]


def test_a_network_that_is_not_built_the_same_twice_is_not_written(run, file, place, sick):
    file(
        "moody.py",
        """
        import sick
        calls = []

        def build():
            calls.append(1)
            return sick.Net(width=32 if len(calls) == 1 else 16)
        """,
    )
    words = ("--data", "sick:batches", "--weights", "in.safetensors", "--out", "cured")
    result = run("fix", "moody:build", *words)
    assert result.code == 2
    assert "cannot be built again from the target" in result.err
    assert not (place / "cured").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--out: name a folder for the cured network, or look first with --dry-run"),
        (("--out", "no/such"), "there is no folder 'no'"),
        (("--out", "sick.py"), "'sick.py' is a file"),
        (("--dry-run", "--cure", "cure-all"), "'cure-all' is no cure that can be carried out"),
        (("--dry-run", "--cure", "recalibrat"), "did you mean 'recalibrate'?"),
        (("--dry-run", "--cure", "recalibrate:speed=3"), "'speed' is no option of the cure 'recalibrate'"),
        (("--dry-run", "--cure", "recalibrate:noise"), "must read CODE or CODE:KEY=VALUE"),
        (("--dry-run", "--cure", "recalibrate", "--cure", "recalibrate"), "is given twice"),
        (("--dry-run", "--cure", "recalibrate", "--select", "VS1"), "--cure does what it names"),
        (("--dry-run", "--select", "VS999"), "VS999"),
        (("--dry-run", "--shape", "8"), "--shape is used instead of --data: give one of the two."),
        (("--dry-run", "--arg", "depth=3"), "has no argument 'depth'"),
    ],
)
def test_wrong_options(refused, sick, words, message):
    assert message in refused(*WORDS, "in.safetensors", *words)


def test_what_the_project_means_is_not_cured(run, file, sick):
    file(
        "noisy.py",
        """
        import torch.nn.functional as F
        from torch import nn

        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.one = nn.Linear(8, 4)

            def forward(self, x):
                return F.dropout(self.one(x), 0.5)
        """,
    )
    words = ("fix", "noisy:Noisy", "--data", "sick:batches", "--dry-run", "--select", "VS106")
    assert "VS106" in run(*words).out
    file("pyproject.toml", '[tool.varshift]\nintended = [":dropout"]')
    assert "Nothing to cure" in run(*words).out


def test_a_cure_of_the_data_does_not_keep_the_network_from_being_rebuilt(run, file, place, sick):
    file(
        "loaders.py",
        """
        from torch.utils.data import DataLoader, TensorDataset
        import sick, torch
        x, y = (torch.cat(parts) for parts in zip(*sick.batches()))
        loader = DataLoader(TensorDataset(x[:65], y[:65]), 64, shuffle=True)
    """,
    )
    words = ("--data", "loaders:loader", "--cure", "drop-last", "--out", "cured")
    result = run("fix", "sick:build", *words)
    assert (result.code, result.err) == (0, "")
    assert "drop_last=True" in result.out
    assert outputs("cured", place).shape == (16, 4)
