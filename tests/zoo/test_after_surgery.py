"""Networks of timm after surgery, and plans for them."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import varshift as vs
from varshift.fixes import prove
from varshift.flow import capture

pytestmark = pytest.mark.zoo

NETWORKS = {
    "test_vit": {"img_size": 64, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1},
    "test_resnet": {"drop_rate": 0.1, "drop_path_rate": 0.1},
}
CURES = {"removed": ["remove-noise"], "uniform": {"swap-noise": {"to": "uniform"}}}


def build(name):
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **NETWORKS[name])


def gradients(network, batch, reentrant=None):
    network.zero_grad()
    torch.manual_seed(3)
    batch = batch.clone().requires_grad_()
    output = network(batch) if reentrant is None else checkpoint(network, batch, use_reentrant=reentrant)
    output.square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("cure", list(CURES))
def test_a_network_can_do_what_it_could(name, cure):
    network, batch = build(name), torch.randn(4, 3, 64, 64)
    before = capture(network, batch)
    cured = vs.fix(network, example_inputs=batch, cures=CURES[cure], recheck=False)
    edited = cured.model
    assert cured.ok, cured
    assert {change.site for change in cured.changes} == {site.id for site in before.train.noises}
    after = capture(edited, batch)
    assert {site.kind for site in after.train.noises} == ({"uniform"} if cure == "uniform" else set())
    assert list(edited.state_dict()) == list(network.state_dict())
    assert torch.allclose(edited.eval()(batch), network.eval()(batch), atol=1e-5)
    again = vs.apply_plan(build(name), cured.plan.to_json()).model
    for other in (copy.deepcopy(edited), pickle.loads(pickle.dumps(edited)), again):
        proof = prove(after, capture(other, batch), ())
        assert proof.exact, proof.reason
    plain = gradients(edited.train(), batch)
    for reentrant in (True, False):
        error = (gradients(edited, batch, reentrant) - plain).abs().max()
        assert error <= 1e-6 * plain.abs().max()
