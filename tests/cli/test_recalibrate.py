import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

NETS = """
    import torch
    from torch import nn

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.BatchNorm1d(4)
            self.idle = nn.BatchNorm1d(4)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.used(self.drop(x))

    def linear():
        return nn.Linear(4, 4)

    def loader():
        generator = torch.Generator().manual_seed(0)
        return [3 + 2 * torch.randn(32, 4, generator=generator) for _ in range(6)]
"""


@pytest.fixture
def two(file):
    file("two.py", NETS)
    torch.manual_seed(0)
    return {
        f"{norm}.{key}": value
        for norm in ("used", "idle")
        for key, value in torch.nn.BatchNorm1d(4).state_dict().items()
    }


WORDS = ("recalibrate", "two:Two", "--data", "two:loader", "--out")


def test_new_statistics_are_shown_and_written(run, place, two):
    torch.save({"epoch": 7, "state_dict": {f"module.{key}": value for key, value in two.items()}}, "in.pt")
    result = run(*WORDS, "out.pt", "--weights", "in.pt")
    assert (result.code, result.err) == (0, "")
    assert "1 of 2 norms recalibrated from 192 samples in 6 batches" in result.out
    assert "idle keeps its statistics: no batch reached it." in result.out
    assert result.out.endswith("Written to out.pt.\n")
    out = torch.load("out.pt", weights_only=True)
    assert out["epoch"] == 7
    state = {key.removeprefix("module."): value for key, value in out["state_dict"].items()}
    assert set(state) == set(two)
    assert state["used.running_mean"].mean() == pytest.approx(3, abs=0.2)
    assert state["used.running_var"].mean() == pytest.approx(4, rel=0.2)
    assert all(
        state[key].equal(two[key])
        for key in two
        if key.startswith("idle") or ("running" not in key and "tracked" not in key)
    )


def test_noise_stays_on_when_asked(run, two):
    run(*WORDS, "off.pt")
    run(*WORDS, "on.pt", "--noise")
    off, on = (torch.load(name, weights_only=True)["used.running_var"] for name in ("off.pt", "on.pt"))
    assert (on > 2 * off).all()  # at rate one half the second moment doubles


def test_safetensors_in_and_out(run, place, two):
    save_file(two, "in.safetensors")
    assert run(*WORDS, "out.safetensors", "--weights", "in.safetensors").code == 0
    assert set(load_file("out.safetensors")) == set(two)


def test_batches_and_tolerance(run, two):
    assert "64 samples in 2 batches" in run(*WORDS, "a.pt", "--batches", "2").out
    assert "within the tolerance" in run(*WORDS, "b.pt", "--tolerance", "0.5").out
    assert "the tolerance was not reached" in run(*WORDS, "c.pt", "--tolerance", "1e-6").out


def test_an_existing_file_is_written_over_only_by_force(run, refused, file, two):
    old = file("out.pt", "old")
    assert "--out: 'out.pt' exists already: --force writes over it." in refused(*WORDS, "out.pt")
    assert run(*WORDS, "out.pt", "--force").code == 0
    assert old.read_bytes() != b"old"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.npz"], "'out.npz' must end in .safetensors, .pt or .pth"),
        (["no/such/out.pt"], "there is no folder 'no/such'"),
        (["out.pt", "--tolerance", "0"], "--tolerance: 0.0 is a relative error"),
        (["out.pt", "--tolerance", "nan"], "--tolerance: nan is a relative error"),
        (["out.pt", "--weights", "none.pt"], "there is no file 'none.pt'"),
        (["out.pt", "--data", "two:nothing"], "'two' has no 'nothing'"),
    ],
)
def test_wrong_options(refused, two, words, message):
    assert message in refused(*WORDS, *words)


def test_nothing_is_written_when_nothing_changed(refused, run, two, place):
    result = run("recalibrate", "two:linear", "--data", "two:loader", "--out", "out.pt")
    assert result.code == 2
    assert "the network has no norm with running statistics: nothing was written." in result.err
    assert not (place / "out.pt").exists()


BAD = """
    import torch

    def nan():
        return [torch.full((8, 4), float("nan"))]

    def empty():
        return []
"""


@pytest.mark.parametrize(("name", "message"), [("nan", "NaN"), ("empty", "no batches")])
def test_bad_data_write_nothing(refused, file, two, name, message):
    file("bad.py", BAD)
    assert message in refused("recalibrate", "two:Two", "--data", f"bad:{name}", "--out", "out.pt")


def test_without_data_the_statistics_are_predicted(run, place):
    result = run("recalibrate", "nets:trained", "--shape", "4", "--out", "out.pt")
    assert (result.code, result.err) == (0, "")
    assert "recalibrated without data" in result.out
    new = torch.load("out.pt", weights_only=True)
    assert any(key.endswith("running_var") for key in new)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise"], "need data"),
        (["--batches", "3"], "need data"),
        (["--tolerance", "0.1"], "need data"),
        (["--data", "nets:loader", "--shape", "4"], "give one of the two"),
    ],
)
def test_words_that_need_data_or_stand_in_for_it(refused, place, words, message):
    assert message in refused("recalibrate", "nets:trained", "--out", "out.pt", *words)


def test_a_shape_that_the_network_does_not_state_is_asked_for(refused, two):
    message = refused("recalibrate", "two:Two", "--out", "out.pt")
    assert "does not state the size of its input: add --shape or --data" in message


LEARNT = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Linear(32, 4),
        )

    def loader():
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(4, (384,), generator=generator)
        x = 2 * torch.eye(4)[y] @ torch.randn(4, 8, generator=generator)
        x = x + 2 * torch.randn(384, 8, generator=generator)
        return list(zip(x.split(32), y.split(32)))

    def spoiled():
        batches = loader()
        batches[2][0][5] += 500
        return batches

    def trained(mode):
        net, optimizer = network(), None
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        net.train(mode)
        for _ in range(12):
            for x, y in loader():
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        return net

    def cross_entropy(outputs, targets):
        return F.cross_entropy(outputs, targets)
"""


@pytest.fixture
def learnt(file):
    path = file("learnt.py", LEARNT) or Path("learnt.py")
    spec = importlib.util.spec_from_file_location("learnt_here", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LEARNT_WORDS = ("recalibrate", "learnt:network", "--data", "learnt:loader")


def test_the_effect_is_printed(run, learnt):
    torch.save(learnt.trained(True).state_dict(), "in.pt")
    result = run(*LEARNT_WORDS, "--weights", "in.pt", "--out", "out.pt", "--loss", "learnt:cross_entropy")
    assert result.code == 0
    assert "Loss " in result.out
    assert "on 4 batches held back" in result.out


def test_what_made_the_network_worse_is_not_written_unless_forced(run, place, learnt):
    torch.save(learnt.trained(False).state_dict(), "in.pt")
    words = (*LEARNT_WORDS, "--weights", "in.pt", "--out", "out.pt")
    result = run(*words)
    assert result.code == 2
    assert "the network got worse: loss" in result.err
    assert "--force" in result.err
    assert not (place / "out.pt").exists()
    forced = run(*words, "--force")
    assert forced.code == 0
    assert "Warning" not in forced.err
    assert (place / "out.pt").exists()


def test_a_sample_that_dominates_is_named(run, learnt):
    result = run("recalibrate", "learnt:network", "--data", "learnt:spoiled", "--out", "out.pt", "--force")
    assert "Sample 5 of batch 2 dominates the statistics" in result.out


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("source", [("--data", "learnt:loader"), ("--shape", "8")], ids=["data", "free"])
def test_statistics_that_were_written_once_are_not_corrected_again(run, learnt, ending, source):
    state = learnt.trained(True).state_dict()
    torch.save({"model": state, "epoch": 3}, "in.pt")
    sick = run("check", "learnt:network", "--weights", "in.pt", "--shape", "8")
    assert "VS102" in sick.out
    words = ("recalibrate", "learnt:network")
    cured = f"cured.{ending}"
    assert run(*words, "--weights", "in.pt", "--out", cured, *source, "--force").code == 0
    if ending == "pt":
        wrapper = torch.load(cured, weights_only=True)
        assert wrapper["epoch"] == 3
        assert learnt.network().load_state_dict(wrapper["model"], strict=True)
    else:
        assert set(load_file(cured)) == set(state)
    check = run("check", "learnt:network", "--weights", cured, "--shape", "8")
    assert "VS102" not in check.out
    assert "VS207" not in check.out
    assert "re-estimated without noise" in " ".join(check.out.split())
    again = run(*words, "--weights", cured, "--out", "again.pt", "--shape", "8")
    assert again.code == 2
    assert "no norm got new statistics" in again.err
