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
