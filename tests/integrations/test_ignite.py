import pytest
import torch
from torch.nn import functional as F

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()
engine = pytest.importorskip("ignite.engine", reason="needs Ignite: pip install pytorch-ignite")

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]


def trainer_of(net, pieces=1):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)

    def update(trainer, batch):
        x, y = batch
        loss = F.cross_entropy(net(x), y) / pieces
        loss.backward()
        if trainer.state.iteration % pieces == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return engine.Engine(update)


@pytest.mark.parametrize(("pieces", "codes"), [(1, []), (3, ["VS305"])])
def test_an_engine_steps_the_watch(make_net, loader, hosts, pieces, codes):
    net, trainer = make_net(), None
    trainer, found = trainer_of(net, pieces), []
    with vs.watch(net, on_finding=found.append) as watch:
        watch.attach(trainer)
        trainer.run(loader, max_epochs=4)
    assert watch.report.history.steps == 24
    assert [finding.code for finding in found] == codes


def test_an_engine_that_evaluates_wakes_the_watch(make_net, loader, hosts):
    """An evaluation at the end of an epoch that nobody follows with train()."""
    net = make_net()
    trainer, found = trainer_of(net), []
    trainer.add_event_handler(engine.Events.EPOCH_COMPLETED, lambda _: net.eval())
    with vs.watch(net, on_finding=found.append) as watch:
        watch.attach(trainer)
        trainer.run(loader, max_epochs=3)
    assert [finding.evidence["reason"] for finding in found] == ["asleep"]


def test_what_is_no_engine_is_refused(make_net, hosts):
    from ignite.engine.events import State

    with pytest.raises(vs.VarshiftError, match="pass the Engine"):
        vs.watch(make_net()).attach(State())
