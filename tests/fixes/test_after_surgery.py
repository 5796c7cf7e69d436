"""An edited network can do what it could before: training, copies, checkpoints, compilers, processes."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from long_runs import a_few
from mixed_noise import RATES, Mixed, mixed, train
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from treatment import saved

import varshift as vs
from varshift.fixes import prove
from varshift.flow import capture

WORKER = Path(__file__).parent / "workers" / "train_rank.py"
CURES = {"removed": ["remove-noise"], "uniform": {"swap-noise": {"to": "uniform"}}}


@pytest.fixture(params=list(CURES))
def cured(request):
    network, batch = mixed()
    return vs.fix(network, example_inputs=batch, cures=CURES[request.param], recheck=False)


def kinds(network):
    return sorted(site.kind for site in capture(network, mixed()[1]).train.noises)


def test_every_noise_is_reached_by_each_of_the_methods():
    network, batch = mixed()
    assert len(kinds(network)) == len(RATES)
    removed = vs.fix(network, example_inputs=batch, cures=CURES["removed"], recheck=False)
    assert {change.method for change in removed.changes} == {"module", "attribute", "call"}
    assert not kinds(removed.model)
    swapped = vs.fix(network, example_inputs=batch, cures=CURES["uniform"], recheck=False)
    assert set(kinds(swapped.model)) == {"uniform"}
    assert len(kinds(swapped.model)) == len(RATES)
    assert len(kinds(network)) == len(RATES)


def test_weights_load_both_ways_and_the_deployed_function_is_the_same(cured):
    network, batch = mixed()
    assert list(cured.model.state_dict()) == list(network.state_dict())
    cured.model.load_state_dict(network.state_dict(), strict=True)
    network.load_state_dict(cured.model.state_dict(), strict=True)
    assert torch.allclose(cured.model.eval()(batch), network.eval()(batch), atol=1e-6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved])
def test_copies_make_the_same_noise(cured, duplicate):
    batch = mixed()[1]
    proof = prove(capture(cured.model, batch), capture(duplicate(cured.model), batch), ())
    assert proof.exact, proof.reason
    assert not prove(capture(mixed()[0], batch), capture(duplicate(cured.model), batch), ()).exact


def gradients(network, batch, reentrant=None):
    network.zero_grad()
    torch.manual_seed(3)
    batch = batch.clone().requires_grad_()
    output = network(batch) if reentrant is None else checkpoint(network, batch, use_reentrant=reentrant)
    output.square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_under_activation_checkpointing(cured, reentrant):
    network, batch = cured.model.train(), mixed()[1]
    plain = gradients(network, batch)
    assert torch.allclose(gradients(network, batch, reentrant), plain, rtol=1e-6, atol=1e-8)


def test_compiled_as_one_graph_and_exported(cured):
    batch = mixed()[1]
    compiled = torch.compile(cured.model, fullgraph=True, backend="aot_eager")
    compiled.train()
    assert all(map(torch.isfinite, map(torch.tensor, train(compiled, batch))))
    compiled.eval()
    expected = cured.model(batch)
    assert torch.allclose(compiled(batch), expected, atol=1e-6)
    for training in (True, False):
        program = torch.export.export(cured.model.train(training), (batch,), strict=False)
    assert torch.allclose(program.module()(batch), expected, atol=1e-6)


@pytest.mark.parametrize("name", a_few(CURES, 1))
def test_data_parallel_training_in_two_processes(name, tmp_path):
    network, batch = mixed()
    cured = vs.fix(network, example_inputs=batch, cures=CURES[name], recheck=False)
    plan = cured.plan.save(tmp_path / "plan.json")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(plan), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(output)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())
    alone = vs.fix(network, example_inputs=batch, cures=CURES["removed"], recheck=False).model.train()
    train(alone, batch)  # without noise, two halves of a batch make the step of the whole one
    same = [
        torch.allclose(value, first["state"][key], atol=1e-6) for key, value in alone.state_dict().items()
    ]
    assert all(same) == (name == "removed")


def test_a_plan_refuses_what_is_another_place_by_now_and_does_the_rest():
    class Renamed(Mixed):
        """The next version: one call reads otherwise, one module has another name."""

        def __init__(self):
            super().__init__()
            self.dropout = self.drop
            del self.drop

        def forward(self, x):
            x = self.dropout(torch.tanh(self.norm(self.first(x))))
            rate = self.attention_rate if self.training else 0.0
            x = x + F.scaled_dot_product_attention(x, x, x, dropout_p=rate)
            x = F.dropout(torch.tanh(x), p=0.3, training=self.training)
            return self.last(self.masked(x).mean(1))

    network, batch = mixed()
    plan = vs.fix(network, example_inputs=batch, cures=CURES["removed"], recheck=False).plan
    torch.manual_seed(0)
    newer = Renamed()
    before = capture(newer, batch)
    with pytest.raises(vs.ModelError, match=r"no module 'drop'|no method|no call"):
        vs.apply_plan(newer, plan)
    result = vs.apply_plan(newer, plan.to_json(), strict=False)
    reasons = " ".join(map(str, result.failures))
    assert "no module 'drop'" in reasons
    assert len(result.changes) + len(result.failures) == len(plan.edits)
    assert [change.method for change in result.changes] == ["attribute"]
    proof = prove(before, capture(result.model, batch), [change.site for change in result.changes])
    assert proof.exact, proof.reason
    assert not proof.kept


def test_a_plan_is_refused_by_a_module_of_another_class():
    def build(layer):
        return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))

    plan = vs.fix(build(nn.Dropout(0.5)), shape=(4,), cures=CURES["removed"]).plan
    with pytest.raises(vs.ModelError, match="is a ReLU, and was a Dropout in the plan"):
        vs.apply_plan(build(nn.ReLU()), plan)


class TensorRate(nn.Module):
    """Drop path whose rate is a tensor, one of ``torch.linspace``; its description fails."""

    def __init__(self):
        super().__init__()
        self.rate = torch.linspace(0, 0.5, 3)[1]

    def forward(self, x):
        keep = 1 - self.rate
        return x * x.new_empty((x.shape[0], 1)).bernoulli_(keep) / keep if self.training else x

    def extra_repr(self):
        return f"{round(self.rate, 3)}"


@pytest.mark.parametrize("name", list(CURES))
def test_a_rate_that_is_a_tensor_is_no_signal(name):
    network = nn.Sequential(nn.Linear(4, 8), TensorRate(), nn.Linear(8, 2))
    cured = vs.fix(network, shape=(4,), cures=CURES[name], recheck=False)
    assert cured.ok, cured
    assert [change.before for change in cured.changes] == ["TensorRate"]
    assert not isinstance(cured.model[1], TensorRate)
