import random

import pytest
import torch
from torch.nn import functional as F

import varshift as vs
from varshift.integrations import declare_torchvision_operators

declare_torchvision_operators()
learner = pytest.importorskip("fastai.learner", reason="needs fastai: pip install fastai")

from fastai.data.core import DataLoaders  # noqa: E402

from varshift.integrations import VarshiftLearnerCallback  # noqa: E402

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]


@pytest.fixture
def learn(make_net, data, tmp_path):
    def make(net=None):
        random.seed(0)  # of which a loader makes its own generator
        loaders = DataLoaders.from_dsets(data, data, bs=16, device="cpu", num_workers=0)
        made = learner.Learner(loaders, net or make_net(), loss_func=F.cross_entropy, path=tmp_path)
        made.remove_cbs([cb for cb in made.cbs if type(cb).__name__ == "ProgressCallback"])
        return made

    return make


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_sound_fit_is_left_alone_and_nothing_is_found(learn, make_net):
    plain, watched = learn(make_net()), learn(make_net())
    callback = VarshiftLearnerCallback(check_every=1, max_batches=2)
    plain.fit(2)
    watched.fit(2, cbs=callback)
    assert callback.companion.watch.report.history.steps == 12
    assert callback.companion.watch.findings == ()
    assert len(callback.companion.reports) == 2
    assert same(plain.model.state_dict(), watched.model.state_dict())


def test_a_learner_can_be_attached_to(learn, hosts):
    host = learn()
    with vs.watch(host.model) as watch:
        watch.attach(host)
        host.fit(1)
    assert watch.report.history.steps == 6


def test_loaders_of_fastai_are_loaders(learn):
    host = learn()
    assert vs.recalibrate(host.model, host.dls, max_batches=3).batches == 3
    with pytest.raises(vs.DataError, match=r"pass one, as its \.valid"):
        vs.check(host.model, host.dls.train, deploy=host.dls)
