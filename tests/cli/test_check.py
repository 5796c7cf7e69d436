import json
import sys

import pytest
import torch
from jsonschema import Draft202012Validator

from varshift.report import report_schema

SICK = ("check", "nets:trained", "--data", "nets:loader")
CLEAN = ("check", "nets:trained", "--arg", "p=0", "--data", "nets:loader")

DATA = """
    import torch
    from torch.utils.data import DataLoader, Dataset, TensorDataset

    def batch(size=16, features=4):
        return torch.randn(size, features), torch.randint(0, 3, (size,))

    loader = DataLoader(TensorDataset(*batch(64)), batch_size=16)
    listed = [batch(), batch()]
    once = (batch() for _ in range(3))
    passes = []

    def generator():
        passes.append(1)
        for _ in range(3):
            yield batch()

    def empty():
        return []

    def nan():
        x, y = batch()
        x[3, 1] = float("nan")
        return [(x, y)]

    def text():
        return ["hello"]

    def wrong_shape():
        return [batch(features=7)]

    def wrong_targets():
        x, _ = batch()
        return [(x, torch.full((16,), 99))]

    def dataset():
        return TensorDataset(*batch(64))

    def tensor():
        return torch.randn(8, 4)

    def one_batch():
        return batch()

    def mapping():
        return {"x": torch.randn(8, 4)}

    def number():
        return 3

    def none():
        pass

    def needs(size):
        return []

    def dies():
        yield batch()
        raise OSError("disk gone")

    def broken():
        raise KeyError("path")

    def named():
        return [{"inputs": {"pixels": batch()[0]}, "answer": batch()[1]} for _ in range(2)]

    def forward(model, batch):
        return model(batch["inputs"]["pixels"])

    def loss(outputs, targets):
        return outputs.square().mean()

    def bad_forward(model, batch):
        raise RuntimeError("my forward")

    def bad_loss(outputs, targets):
        raise RuntimeError("my loss")
"""


@pytest.fixture
def data(file):
    return file("data.py", DATA)


def report_of(text):
    content = json.loads(text)
    Draft202012Validator(report_schema()).validate(content)
    return content


def test_a_sick_network_has_findings_and_exits_with_one(run, place):
    result = run(*SICK, "--json", "report.json", "--batches", "3")
    assert (result.code, result.err) == (1, "")
    assert "VS101 noise-feeds-norm" in result.out
    assert "nets.py:" in result.out
    assert "── Norms" in result.out
    assert "── From training to deployment" in result.out
    content = report_of((place / "report.json").read_text())
    assert content["model"]["target"] == "nets:trained"
    assert (content["data"]["batches"], content["data"]["samples"]) == (3, 192)
    assert {finding["code"] for finding in content["findings"]} == {"VS101"}  # VS207 would say the same
    assert content["layers"][0]["measured"]["ratio"] < 0.75


@pytest.mark.parametrize(
    ("name", "start"), [("r.html", "<!doctype html>"), ("r.txt", "varshift check"), ("r.json", "{")]
)
def test_the_report_is_written_in_the_format_that_the_ending_names(run, place, name, start):
    run("check", "nets:build", "--shape", "4", "--select", "VS204", "--output", name)
    assert (place / name).read_text().startswith(start)


def test_a_healthy_network_exits_with_zero(run):
    result = run(*CLEAN)
    assert (result.code, result.err) == (0, "")
    assert "Nothing found" in result.out


def test_findings_can_be_let_pass(run, file):
    words = ("check", "nets:build", "--shape", "4")
    assert run(*words).code == 1
    assert run(*words, "--exit-zero").code == 0
    file("pyproject.toml", "[tool.varshift]\nexit-zero = true\n")
    assert run(*words).code == 0


def test_findings_fail_from_a_severity_on(run, file):
    words = ("check", "nets:slow", "--select", "VS204")
    assert "1 warning" in run(*words).out
    assert run(*words).code == 1
    assert run(*words, "--fail-on", "error").code == 0
    file("pyproject.toml", '[tool.varshift]\nfail-on = "error"\n')
    assert run(*words).code == 0
    assert run(*words, "--fail-on", "advice").code == 1


def test_the_data_of_deployment_are_a_step_of_the_gap(run, place):
    words = ("check", "nets:trained", "--arg", "p=0", "--json", "r.json", "--exit-zero")
    run(*words, "--data", "nets:loader", "--deploy", "nets:darker")
    gap = json.loads((place / "r.json").read_text())["gap"]
    assert [step["cause"] for step in gap["steps"]][-1] == "transform"
    assert gap["steps"][-1]["delta"] == gap["states"]["deployed"] - gap["states"]["eval"] != 0
    result = run(*words, "--deploy", "nets:darker")
    assert (result.code, "--deploy is compared with the training data" in result.err) == (2, True)


def test_the_weights_that_an_average_comes_from(run, place):
    import torch

    from varshift.cli._objects import resolve_object

    source, average = (resolve_object("nets:trained", "--target")(p=0.0) for _ in range(2))
    average.first.weight.data.mul_(3)
    torch.save(source.state_dict(), "source.pt")
    torch.save(average.state_dict(), "average.pt")
    words = ("check", "nets:build", "--arg", "p=0", "--weights", "average.pt", "--data", "nets:loader")
    result = run(*words, "--reference-weights", "source.pt", "--json", "r.json")
    assert result.code == 1, result.err
    findings = json.loads((place / "r.json").read_text())["findings"]
    assert (findings[0]["code"], findings[0]["evidence"]["form"]) == ("VS205", "equal")
    assert not {"VS202", "VS306"} & {finding["code"] for finding in findings}
    result = run(*words, "--reference-weights", "nowhere.pt")
    assert (result.code, "--reference-weights: there is no file" in result.err) == (2, True)


def test_a_training_step_is_run_on_copies(run, file, place):
    file(
        "steps.py",
        "import torch\n"
        "def twice(model, batch):\n"
        "    optimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "    for _ in range(2):\n"
        "        torch.nn.functional.cross_entropy(model.train()(batch[0]), batch[1]).backward()\n"
        "    optimizer.step()\n",
    )
    words = ("check", "nets:trained", "--arg", "p=0", "--step", "steps:twice", "--json", "r.json")
    run(*words, "--data", "nets:loader", "--select", "VS305")
    (finding,) = json.loads((place / "r.json").read_text())["findings"]
    assert (finding["code"], finding["evidence"]["form"]) == ("VS305", "again")
    result = run(*words)
    assert (result.code, "--step needs batches" in result.err) == (2, True)


def test_rules_are_selected_on_the_command_line_and_in_the_configuration(run, file, place):
    def codes(*words):
        run("check", "nets:build", "--shape", "4", "--json", "r.json", *words)
        return {finding["code"] for finding in report_of((place / "r.json").read_text())["findings"]}

    assert codes() == {"VS101", "VS201"}
    assert codes("--select", "VS2") == {"VS201"}
    assert codes("--ignore", "VS2,VS102") == {"VS101"}
    assert codes("--select", "VS102", "--select", "VS201") == {"VS201"}
    file("pyproject.toml", '[tool.varshift]\nselect = ["VS1"]\nextend-ignore = ["VS101"]\n')
    assert codes() == set()
    assert codes("--select", "VS2") == {"VS201"}


def test_json_on_standard_output_is_alone_there(run, file):
    file(
        "chatty.py",
        "print('importing')\nfrom nets import *\ndef noisy():\n    print('building')\n    return trained()\n",
    )
    result = run("check", "chatty:noisy", "--data", "nets:loader", "--json", "-", "--fail-on", "advice")
    assert result.code == 1
    assert report_of(result.out)["model"]["target"] == "chatty:noisy"
    assert result.out.count("\n{") == 0
    assert "importing" in result.err
    assert "building" in result.err
    assert "VS101 noise-feeds-norm" in result.err


def test_without_data_it_says_what_data_would_add(run):
    result = run("check", "nets.py:build", "--shape", "4")
    assert result.code == 1
    assert "── Noise sites" in result.out
    assert "vs.check(model, loader), or --data" in result.out
    assert "VS101" in result.out


def test_with_nothing_but_the_network_it_reads_what_the_modules_say(run, file):
    file(
        "odd.py",
        "from torch import nn\nnet = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=0.99))\n",
    )
    result = run("check", "odd:net")
    assert result.code == 1
    assert "VS204" in result.out


@pytest.mark.zoo
def test_a_network_of_the_zoo_brings_its_own_shape(run):
    result = run("check", "timm:resnet10t", "--arg", "drop_rate=0.5", "--select", "VS1")
    assert result.code == 0
    assert "captured from one recorded pass per mode" in " ".join(result.out.split())


def test_the_same_seed_gives_the_same_report(run, place, data):
    texts = []
    for _ in range(2):
        run("check", "nets:build", "--data", "data:loader", "--json", "r.json", "--seed", "3")
        texts.append((place / "r.json").read_text())
    assert texts[0] == texts[1]


def test_weights_are_loaded(run, place):
    from varshift.cli._models import resolve_model

    sys.path.insert(0, str(place))
    trained = resolve_model("nets:trained", {})
    sys.path.remove(str(place))
    torch.save({"state_dict": trained.state_dict(), "ema": trained.state_dict()}, place / "w.pt")
    words = ("--data", "nets:loader", "--json", "r.json")
    result = run("check", "nets:build", "--weights", "w.pt", *words)
    assert result.err.startswith("varshift: note: w.pt has several state dicts; took state_dict.")
    assert report_of((place / "r.json").read_text())["layers"][0]["measured"]["moving_var"] == pytest.approx(
        float(trained.norm.running_var.mean()), rel=1e-6
    )
    assert run("check", "nets:build", "--weights", "w.pt", "--weights-key", "ema", *words).err == ""


@pytest.mark.parametrize("name", ["loader", "listed", "once", "generator"])
def test_data_come_in_many_forms(run, place, data, name):
    result = run("check", "nets:build", "--data", f"data.py:{name}", "--json", "r.json", "--exit-zero")
    assert result.code == 0, result.err
    batches = {"loader": 4, "listed": 2, "once": 3, "generator": 3}[name]
    assert report_of((place / "r.json").read_text())["data"]["batches"] == batches


def test_functions_for_forward_and_loss(run, place, data):
    words = ("check", "nets:build", "--data", "data:named", "--json", "r.json", "--exit-zero")
    assert run(*words, "--forward", "data:forward").code == 0
    assert run("check", "nets:build", "--data", "data:listed", "--loss", "data:loss", *words[4:]).code == 0
    assert report_of((place / "r.json").read_text())["gap"]["metric"] == "loss"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "yielded no batches"),
        ("nan", "NaN or infinite"),
        ("text", "batch 0 is a str"),
        ("wrong_shape", "(16, 7)"),
        ("wrong_targets", "targets run from 99 to 99"),
        ("dataset", "is a data set (TensorDataset), which has samples and not batches"),
        ("tensor", "is a tensor. Expected a DataLoader"),
        ("one_batch", "is a tuple of tensors, which looks like one batch"),
        ("mapping", "is a dict. Expected a DataLoader"),
        ("number", "is a int and cannot be iterated over"),
        ("none", "is None. Expected a DataLoader"),
        ("needs", "missing a required argument: 'size'"),
        ("dies", "OSError: disk gone (data.py:"),
        ("broken", "calling data:broken failed: KeyError: 'path' (data.py:"),
        ("laoder", "'data' has no 'laoder'; did you mean 'loader'"),
    ],
)
def test_wrong_data(refused, data, name, message):
    assert message in refused("check", "nets:build", "--data", f"data:{name}", "--json", "report.json")


def test_wrong_functions(refused, data):
    words = ("check", "nets:build", "--data", "data:listed")
    assert "RuntimeError: my loss (data.py:" in refused(*words, "--loss", "data:bad_loss")
    assert "my forward" in refused(*words, "--forward", "data:bad_forward")
    assert "--forward: 'data:passes' is a list, not a function" in refused(*words, "--forward", "data:passes")


def test_a_wrong_shape_names_the_shapes(refused):
    error = refused("check", "nets:build", "--shape", "3,8,8", "--json", "report.json")
    assert "(2, 3, 8, 8)" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--select", "VS999"], "'VS999' is not a rule code"),
        (["--ignore", "vs1O1"], "did you mean VS101"),
        (["--json", "no/such/report.json"], "there is no folder 'no/such'"),
        (["--output", "no/such/report.html"], "there is no folder 'no/such'"),
        (["--output", "report.docx"], "its ending must be one of .json, .txt, .html, .svg"),
        (["--json", "."], "it is a folder"),
        (["--weights", "none.pt"], "there is no file 'none.pt'"),
        (["--weights-key", "ema"], "there is no file to look in"),
        (["--shape", "3,x"], "--shape: '3,x' must be positive whole numbers"),
    ],
)
def test_wrong_options_are_found_before_the_work(refused, monkeypatch, words, message):
    monkeypatch.setattr("varshift.check", lambda *args, **kwargs: pytest.fail("worked"), raising=False)
    assert message in refused("check", "nets:build", *words)


def test_a_report_path_is_found_wanting_before_anything_is_imported(refused, file):
    file("slow.py", "raise RuntimeError('imported')\n")
    assert "cannot write" in refused("check", "slow:f", "--json", "no/such/report.json")


def test_an_old_report_survives_a_check_that_fails(refused, file, data):
    old = file("report.json", "old")
    refused("check", "nets:build", "--data", "data:nan", "--json", "report.json")
    assert old.read_text() == "old"


def test_progress_goes_to_a_terminal_only(run, monkeypatch):
    assert run(*CLEAN).err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    result = run(*CLEAN, "--json", "-")
    report_of(result.out)
    assert "capturing the network" in result.err


def test_the_report_says_the_command_that_repeats_it(run, place):
    run(
        "check",
        "nets:build",
        "--arg",
        "p=0.25",
        "--shape",
        "4",
        "--json",
        "my report.json",
        "--select",
        "VS1",
    )
    report = report_of((place / "my report.json").read_text())
    assert report["repeat"] == (
        "varshift check nets:build --arg p=0.25 --shape 4 --json 'my report.json' --select VS1"
    )
    ran = [rule["code"] for rule in report["rules"] if rule["ran"]]
    assert ran == ["VS101", "VS102", "VS103", "VS104", "VS105", "VS106", "VS107"]


def test_a_selection_on_the_command_line_runs_only_what_its_rules_need(run, refused, data, file):
    file(
        "silent.py",
        """
        from nets import Net

        class Silent(Net):
            def forward(self, x):
                raise RuntimeError("was run")

        def loader():
            raise OSError("was drawn")
            yield
        """,
    )
    assert run("check", "silent:Silent", "--data", "data:listed", "--select", "VS204,VS301").code == 0
    assert "was run" in refused("check", "silent:Silent", "--data", "data:listed", "--select", "VS101")
