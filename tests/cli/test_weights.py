import argparse
import datetime
import pickle
from collections import OrderedDict
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from varshift import VarshiftError
from varshift.cli._weights import ignored_keys, load_weights, read_checkpoint, state_writer, updated_content


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))


@pytest.fixture
def state():
    return network(1).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def loaded(path, key=None, model=None):
    model = model or network()
    load_weights(model, read_checkpoint(path, key))
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(1)}}}},
        lambda state: {"model": state, "lr": 0.1},
        lambda state: {"model_state_dict": prefixed(state, "module.")},
        lambda state: {"state_dict": prefixed(state, "model.")},
        lambda state: {"checkpoint": {"weights": state}},
        lambda state: prefixed(state, "module._orig_mod.model."),
        lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(5)},
        lambda state: {"model_ema": state},
        lambda state: {key.replace("2.0", "2._orig_mod.0"): value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: {"state_dict": state, "state_dict_ema": {k: v * 0 for k, v in state.items()}},
        lambda state: {"ema": {k: v * 0 for k, v in state.items()}, "net": state},
    ],
)
def test_state_dicts_are_found_however_they_are_wrapped(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "w.pt")
    model = loaded(tmp_path / "w.pt")
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())


def test_a_wrapped_network_takes_plain_weights(tmp_path, state):
    torch.save(state, tmp_path / "w.pt")
    model = torch.optim.swa_utils.AveragedModel(network()).module
    wrapped = nn.Module()
    wrapped.module = model
    loaded(tmp_path / "w.pt", model=wrapped)
    assert model[0].weight.equal(state["0.weight"])


def test_a_key_says_which_of_several_state_dicts_is_meant(tmp_path, state):
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"state_dict": state, "best": {"ema": other}}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt").others == ("best.ema",)
    assert loaded(tmp_path / "w.pt", "best.ema")[0].weight.equal(other["0.weight"])
    with pytest.raises(
        VarshiftError, match=r"no state dict at 'worst'\. It has them at state_dict, best\.ema"
    ):
        read_checkpoint(tmp_path / "w.pt", "worst")


def test_safetensors_load_with_their_metadata(tmp_path, state):
    save_file(prefixed(state, "module."), tmp_path / "w.safetensors", metadata={"epoch": "3"})
    assert read_checkpoint(tmp_path / "w.safetensors").metadata == {"epoch": "3"}
    assert loaded(tmp_path / "w.safetensors")[0].weight.equal(state["0.weight"])


def test_what_does_not_fit_is_listed(tmp_path, state):
    state["0.weight"] = torch.zeros(5, 3)
    state["extra.a"] = torch.zeros(1)
    del state["2.0.bias"], state["1.running_var"]
    torch.save(prefixed(state, "module."), tmp_path / "w.pt")
    with pytest.raises(VarshiftError) as caught:
        loaded(tmp_path / "w.pt")
    message = str(caught.value)
    assert "does not fit Sequential" in message
    assert "2 missing: 1.running_var, 2.0.bias" in message
    assert "1 unexpected: extra.a" in message
    assert "1 of another shape: 0.weight (file (5, 3), network (4, 3))" in message


def test_long_lists_of_keys_are_cut(tmp_path):
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(20)}, tmp_path / "w.pt")
    with pytest.raises(VarshiftError, match=r"20 unexpected: layer0\.weight, .* and 16 more"):
        loaded(tmp_path / "w.pt")


class Harmless:
    pass


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def make(kind, path, state):
    if kind == "module":
        torch.save(network(), path)
    elif kind == "trap":
        torch.save({"state_dict": state, "trap": Trap()}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": Trap()}))
    elif kind == "script":
        torch.jit.save(torch.jit.trace(network().eval(), torch.zeros(2, 3)), path)


@pytest.mark.parametrize("kind", ["module", "trap", "plain pickle", "script"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_pickles_are_refused_and_never_run(tmp_path, state, kind):
    make(kind, tmp_path / "w.pt", state)
    with pytest.raises(VarshiftError, match=r"was refused: it .*torch\.save\(model\.state_dict\(\)"):
        read_checkpoint(tmp_path / "w.pt")
    assert not Trap.sprung


def test_the_class_that_is_in_the_way_is_named_and_what_to_do(tmp_path, state):
    make("trap", tmp_path / "w.pt", state)
    with pytest.raises(VarshiftError, match=r"setattr\).*--trust reads it all the same"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "extra",
    [
        argparse.Namespace(lr=1, path=Path("a/b")),
        OrderedDict(a=1),
        SimpleNamespace(a=1),
        Path("runs/1"),
        PureWindowsPath("runs/1"),
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.random.RandomState(0).get_state(),
        datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    ],
    ids=lambda extra: type(extra).__name__,
)
def test_harmless_objects_are_read_and_written_back(tmp_path, state, extra):
    before = list(torch.serialization.get_safe_globals())
    torch.save({"model": state, "args": extra}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert type(checkpoint.content["args"]) is type(extra)
    assert str(checkpoint.content["args"]) == str(extra)
    names = load_weights(network(), checkpoint)
    updated_content(checkpoint, names, {}, ".pt")(tmp_path / "out.pt")
    assert str(read_checkpoint(tmp_path / "out.pt").content["args"]) == str(extra)
    assert torch.serialization.get_safe_globals() == before


def test_configurations_of_omegaconf_are_read_and_left_alone(tmp_path, state):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": [1, {"b": "x"}], "missing": "???", "other": "${nowhere}"})
    torch.save({"cfg": config, "state_dict": state}, tmp_path / "w.pt")
    assert loaded(tmp_path / "w.pt")[0].weight.equal(state["0.weight"])
    assert read_checkpoint(tmp_path / "w.pt").content["cfg"].a[1].b == "x"


def test_a_trusted_pickle_is_read_with_a_warning(tmp_path, state, capsys):
    torch.save({"model": network(1), "own": Harmless()}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt", trust=True)
    assert "warning: --trust" in capsys.readouterr().err
    model = network()
    names = load_weights(model, checkpoint)
    assert model[0].weight.equal(state["0.weight"])
    updated_content(checkpoint, names, {"0.bias": torch.ones(4)}, ".pt")(tmp_path / "out.pt")
    out = read_checkpoint(tmp_path / "out.pt", trust=True)
    assert out.state["0.bias"].equal(torch.ones(4))
    capsys.readouterr()
    torch.save(state, tmp_path / "plain.pt")
    read_checkpoint(tmp_path / "plain.pt", trust=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_hugging_face_is_searched(tmp_path, state, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VarshiftError, match=r"is a folder without model\.safetensors or pytorch_model\.bin"):
        read_checkpoint(tmp_path)
    state_writer(state, Path(name).suffix)(tmp_path / name)
    assert loaded(tmp_path)[0].weight.equal(state["0.weight"])


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_pointer_of_git_lfs_is_told_apart(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(VarshiftError, match=r"pointer of Git LFS.*git lfs pull"):
        read_checkpoint(tmp_path / name)


def test_keys_that_the_network_does_not_have_are_ignored_unless_strict(tmp_path, state):
    content = {**prefixed(state, "model."), "criterion.weight": torch.ones(3)}
    torch.save({"state_dict": content}, tmp_path / "w.pt")
    checkpoint, model = read_checkpoint(tmp_path / "w.pt"), network()
    names = load_weights(model, checkpoint)
    assert model[0].weight.equal(state["0.weight"])
    assert names == {f"model.{key}": key for key in state}
    assert ignored_keys(checkpoint, names) == "criterion.weight"
    with pytest.raises(VarshiftError, match=r"1 unexpected: criterion\.weight"):
        load_weights(network(), checkpoint, strict=True)


def test_a_file_of_which_nothing_is_used_is_refused(tmp_path):
    torch.save({"a.weight": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(VarshiftError, match=r"1 unexpected: a\.weight"):
        loaded(tmp_path / "w.pt", model=nn.ReLU())


@pytest.mark.parametrize("prefix", ["student", "student.", "student.module"])
def test_a_prefix_chooses_one_of_several_networks(tmp_path, state, prefix):
    start = prefix.rstrip(".") + "."
    other = prefixed({key: value * 0 for key, value in state.items()}, "teacher.")
    torch.save({**prefixed(state, start), **other}, tmp_path / "w.pt")
    checkpoint, model = read_checkpoint(tmp_path / "w.pt"), network()
    with pytest.raises(VarshiftError, match=rf"missing: .*It fits with --prefix {start} or --prefix teacher"):
        load_weights(model, checkpoint)
    names = load_weights(model, checkpoint, prefix, strict=True)
    assert names[f"{start}0.weight"] == "0.weight"
    assert model[0].weight.equal(state["0.weight"])
    assert not ignored_keys(checkpoint, names, prefix)
    with pytest.raises(VarshiftError, match=r"no key .* begins with 'pupil\.'\. They begin with student, te"):
        load_weights(model, checkpoint, "pupil")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 broken"])
def test_files_of_another_kind_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VarshiftError, match=r"--weights: .*cannot be read"):
        read_checkpoint(tmp_path / name)


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "w.pt")
    with pytest.raises(VarshiftError, match="holds a dict with 'epoch', 'lr' and no state dict"):
        read_checkpoint(tmp_path / "w.pt")
    with pytest.raises(VarshiftError, match=r"there is no file .*did you mean .*w\.pt"):
        read_checkpoint(tmp_path / "v.pt")


def test_a_checkpoint_is_written_as_it_was_but_for_what_changed(tmp_path, state):
    half = {key: value.half() if key.endswith("var") else value for key, value in state.items()}
    content = {"epoch": 3, "model": {"state_dict": prefixed(half, "module.")}, "tail": [1, 2]}
    torch.save(content, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    names = load_weights(network(), checkpoint)
    updated_content(checkpoint, names, {"1.running_var": torch.full((4,), 2.0)}, ".pt")(tmp_path / "out.pt")
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(out) == ["epoch", "model", "tail"]
    assert (out["epoch"], out["tail"]) == (3, [1, 2])
    found = out["model"]["state_dict"]
    assert list(found) == list(content["model"]["state_dict"])
    for key, value in content["model"]["state_dict"].items():
        assert found[key].dtype == value.dtype
        expected = torch.full((4,), 2.0).half() if key.endswith("var") else value
        assert found[key].equal(expected)
    updated_content(checkpoint, names, {}, ".safetensors")(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert set(file.keys()) == set(found)


def test_tied_weights_can_be_written_as_safetensors(tmp_path):
    shared = torch.ones(2, 2)
    write = state_writer({"a": shared, "b": shared.t(), "_extra_state": 3}, ".safetensors")
    write(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.get_tensor("b").equal(shared)
