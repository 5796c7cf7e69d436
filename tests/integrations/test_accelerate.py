import pytest
import torch
from torch.nn import functional as F

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()
accelerate = pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]


@pytest.fixture
def accelerator():
    """A new one: its state is one for the whole process."""
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()

    def make(**options):
        return accelerate.Accelerator(cpu=True, **options)

    yield make
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize(("pieces", "codes"), [(1, []), (2, ["VS305"])])
def test_a_loop_with_three_lines_more(accelerator, make_net, loader, pieces, codes):
    host, found = accelerator(gradient_accumulation_steps=pieces), []
    net = make_net()
    model, optimizer, batches = host.prepare(net, torch.optim.SGD(net.parameters(), lr=0.05), loader)
    with vs.watch(model, optimizer=optimizer, on_finding=found.append) as watch:
        for _ in range(4):
            for x, y in batches:
                with host.accumulate(model):
                    host.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
                watch.step()
    assert [finding.code for finding in found] == codes
    assert watch.report.history.calls == pieces


def test_a_check_in_the_middle_of_an_epoch_leaves_the_accumulation_alone(accelerator, make_net, loader):
    host = accelerator(gradient_accumulation_steps=4)
    net = make_net()
    model, batches = host.prepare(net, loader)
    flags = []
    for number, _ in enumerate(batches):
        if number == 2:
            vs.recalibrate(model, batches, max_batches=2)
        with host.accumulate(model):
            flags.append(host.sync_gradients)
    assert flags == [False, False, False, True, False, True]


def test_an_accelerator_has_no_events_to_attach_to(accelerator, make_net, hosts):
    with pytest.raises(vs.VarshiftError, match=r"call step\(\) after optimizer.step\(\)"):
        vs.watch(make_net()).attach(accelerator())
