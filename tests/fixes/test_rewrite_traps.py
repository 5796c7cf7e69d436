"""Rewritten calls: what was seen to go wrong with such edits elsewhere must not happen, or is refused."""

import copy
import functools
import linecache
import traceback

import pytest
import rewrite_helpers as helpers
import torch
import torch.nn.functional as F
from rewritten import DROPPED, FILE, REMOVE, UNIFORM, Block, Stack, X, in_training, rates, rewritten
from torch import nn
from torch.nn.utils import parametrize

from varshift import SiteId
from varshift.fixes import (
    CallPlace,
    InsertNoise,
    NoiseAction,
    Refused,
    RewriteCall,
    Surgery,
    call_chain,
    edit_by_hand,
    prove,
)
from varshift.flow import capture


class TestTraps:
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_torchscript_would_compile_the_original_source(self):
        network = Block()
        rewritten(network, REMOVE, 0.5)
        for module in (network, nn.Sequential(network)):
            with pytest.raises(ValueError, match="TorchScript compiles the text of its original"):
                torch.jit.script(module)
        traced = torch.jit.trace(network.eval(), (X,))
        assert torch.equal(traced(X), network(X))

    def test_forward_on_the_instance(self):
        network = Block()
        rewritten(network, REMOVE)
        inner = network.forward
        network.forward = lambda x: inner(x) + 1  # harmless afterwards
        assert torch.equal(in_training(network), network.eval()(X))
        patched = Block()
        patched.forward = patched.forward
        with pytest.raises(Refused, match="was replaced on the instance"):
            rewritten(patched, REMOVE)

    @pytest.mark.parametrize("first", ["edit", "parametrization"])
    def test_parametrization(self, first):
        class Double(nn.Module):
            def forward(self, weight):
                return 2 * weight

        class Noisy(nn.Linear):
            def forward(self, x):
                return F.dropout(super().forward(x), 0.5, self.training)

        network = Noisy(6, 6)
        plain = network.eval()(X)
        if first == "edit":
            rewritten(network, REMOVE)
        parametrize.register_parametrization(network, "weight", Double())
        if first != "edit":
            other = copy.deepcopy(network)
            surgery = rewritten(network, REMOVE)
            surgery.undo()
            assert rates(network) == [0.5]
            rewritten(network, REMOVE)
            assert rates(other) == [0.5]
        assert not torch.equal(network.eval()(X), plain)
        assert torch.equal(in_training(network), network.eval()(X))
        assert isinstance(network, Noisy)
        parametrize.remove_parametrizations(network, "weight", leave_parametrized=False)
        assert rates(network) == []
        assert torch.equal(in_training(network), plain)

    def test_methods_are_looked_for_by_what_they_call(self):
        class Net(nn.Module):
            def forward(self, x):
                drop = torch.relu
                return drop(x) + F.dropout(x, 0.5, self.training)

        network = Net()
        rewritten(network, REMOVE)
        assert torch.equal(in_training(network), torch.relu(X) + X)

    def test_classes_that_keep_a_list_of_classes(self):
        registered = []

        class Meta(type):
            def __init__(cls, *args):
                super().__init__(*args)
                registered.append(cls)

        class Registered(nn.Module, metaclass=Meta):
            def __init_subclass__(cls, name, **kwargs):
                raise AssertionError

            def forward(self, x):
                return F.dropout(x, 0.5, self.training)

        network = Registered()
        rewritten(network, REMOVE)
        assert rates(network) == []
        assert registered == [Registered]

    def test_a_class_with_slots(self):
        class Slots(nn.Module):
            __slots__ = ("extra",)

            def forward(self, x):
                return F.dropout(x, self.extra, self.training)

        network = Slots()
        network.extra = 0.5
        rewritten(network, REMOVE)
        assert rates(network) == []

    def test_tracebacks_and_captures_name_the_original_line(self):
        network = Block()
        surgery = rewritten(network, UNIFORM, 0.5)
        line = Block.forward.__code__.co_firstlineno + 1
        site = capture(network, X).train.noises[0]
        assert (site.kind, site.source.file, site.source.line) == ("uniform", FILE, line)
        assert site.calls[-1].function == "Block.forward"
        surgery.undo()
        rewritten(network, REMOVE, 0.125, surgery=surgery)
        with pytest.raises(RuntimeError) as raised:
            network(X[:, :2])
        frames = traceback.extract_tb(raised.value.__traceback__)
        assert (FILE, line) in [(frame.filename, frame.lineno) for frame in frames]

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_inductor(self):
        network = Block()
        rewritten(network, UNIFORM)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True)
        assert not torch.equal(compiled(X), compiled(X))
        network.eval()
        torch.testing.assert_close(compiled(X), network(X))

    def test_aot_eager_under_gradients(self):
        network = Block()
        rewritten(network, UNIFORM)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        compiled(X).square().sum().backward()
        assert network.layer.weight.grad.abs().sum() > 0

    def test_equal_functions_on_one_line(self):
        class Net(nn.Module):
            def forward(self, x):
                first, second = (lambda v: F.dropout(v, 0.5)), (lambda v: F.dropout(v, 0.5))
                return first(x) + second(2 * x)

        network = Net()
        flows = capture(network, X)
        site = flows.train.noises[1]
        ((path, (place,)),) = call_chain(network, site)
        assert place.ordinal == 2
        RewriteCall(site.id, path, (place,), REMOVE).apply(Surgery(network))
        assert prove(flows, capture(network, X), [site.id]).exact

    def test_symbolic_tracing(self):
        network = Block()
        rewritten(network, UNIFORM)
        InsertNoise("", "after", DROPPED).apply(Surgery(network))
        traced = torch.fx.symbolic_trace(network.eval())
        assert torch.equal(traced(X), network(X))

    def test_distributed_data_parallel(self, tmp_path):
        dist = torch.distributed
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            network = Block()
            rewritten(network, UNIFORM)
            replica = nn.parallel.DistributedDataParallel(copy.deepcopy(network))
            for run in (network, replica):
                in_training(run).square().sum().backward()
            gradient = replica.module.layer.weight.grad
            torch.testing.assert_close(gradient, network.layer.weight.grad)
            assert gradient.abs().sum() > 0
            place = CallPlace("Block.forward", "F.dropout(x, 0.125, self.training)")
            with pytest.raises(Refused, match="fix the model first, and wrap it afterwards"):
                RewriteCall(SiteId("", "dropout"), "module", (place,), REMOVE).apply(Surgery(replica))
        finally:
            dist.destroy_process_group()

    @pytest.mark.parametrize("file", ["<ipython-input-3-0123456789ab>", "<doctest net[0]>"])
    def test_code_that_was_typed_in(self, file):
        text = "class Net(nn.Module):\n    def forward(self, x):\n"
        text += "        return F.dropout(x, 0.5, self.training)\n"
        scope = {"nn": nn, "F": F, "__name__": "__main__"}
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        try:
            exec(compile(text, file, "exec"), scope)
            network = scope["Net"]()
            rewritten(network, UNIFORM)
            (site,) = capture(network, X).train.noises
            assert (site.kind, str(site.source)) == ("uniform", f"{file}:3")
        finally:
            del linecache.cache[file]

    def test_function_wrapped_without_a_trace_of_it(self):
        class Net(nn.Module):
            @helpers.unnamed
            def forward(self, x):
                return F.dropout(x, 0.5, self.training)

        network = Net()
        rewritten(network, REMOVE)
        assert rates(network) == []


class TestRefusals:
    def refused(self, network, path, match):
        place = CallPlace("Block.forward", "F.dropout(x, 0.125, self.training)")
        cls = type(network)
        with pytest.raises(Refused, match=match):
            RewriteCall(SiteId(path, "dropout"), path, (place,), REMOVE).apply(Surgery(network))
        assert type(network) is cls

    def test_no_such_module(self):
        self.refused(Stack(), "blocks.9", "has no module 'blocks.9'")

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_compiled(self):
        self.refused(torch.compile(Block()), "_orig_mod", "fix the model first, and wrap it afterwards")
        network = Block()
        network.compile()
        self.refused(network, "", "fix the model first, and compile it afterwards")

    def test_data_parallel(self):
        self.refused(nn.DataParallel(Block()), "module", "fix the model first, and wrap it afterwards")

    def test_graph_module(self):
        self.refused(torch.fx.symbolic_trace(Block()), "", "fix the model that it was made from")

    def test_no_source(self):
        scope = {"nn": nn, "F": F, "__name__": "nowhere"}
        text = "class Net(nn.Module):\n    def forward(self, x):\n"
        text += "        return F.dropout(x, 0.5, self.training)"
        exec(text, scope)
        network = scope["Net"]()
        (site,) = capture(network, X).train.noises
        assert call_chain(network, site) == []
        place = CallPlace("Net.forward", "F.dropout(x, 0.5, self.training)")
        with pytest.raises(Refused, match="has no source text"):
            RewriteCall(site.id, "", (place,), REMOVE).apply(Surgery(network))

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_decorators(self):
        class Object:
            def __init__(self, function):
                self.__wrapped__ = function

            def __get__(self, instance, owner=None):
                return functools.partial(self.__wrapped__, instance) if instance is not None else self

            def __call__(self, *args):
                return self.__wrapped__(*args)

        for decorate, message in (
            (Object, "is not a plain wrapper around it: take the decorator off"),
            (functools.lru_cache, "is not a plain wrapper around it: take the decorator off"),
            (torch.compile, "is compiled: fix the model first"),
        ):

            class Net(nn.Module):
                @decorate
                def forward(self, x):
                    return F.dropout(x, 0.5, self.training)

            name = "TestRefusals.test_decorators.<locals>.Net.forward"
            place = CallPlace(name, "F.dropout(x, 0.5, self.training)")
            network = Net()
            with pytest.raises(Refused, match=message):
                RewriteCall(SiteId("", "dropout"), "", (place,), REMOVE).apply(Surgery(network))
            assert type(network) is Net

    def test_a_static_method(self):
        class Net(nn.Module):
            @staticmethod
            def drop(x):
                return F.dropout(x, 0.5)

            def forward(self, x):
                return self.drop(x)

        network = Net()
        place = CallPlace("TestRefusals.test_a_static_method.<locals>.Net.drop", "F.dropout(x, 0.5)")
        with pytest.raises(Refused, match="rewrite the call of it instead"):
            RewriteCall(SiteId("", "dropout"), "", (place,), REMOVE).apply(Surgery(network))

    def test_the_edit_by_hand_keeps_the_rest_of_a_call(self):
        class Attends(nn.Module):
            def forward(self, x):
                return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)

        (site,) = capture(Attends(), X.reshape(2, 4, 6)).train.noises
        for action in (REMOVE, UNIFORM, None):
            assert edit_by_hand(site, action).endswith("makes the noise inside; pass another rate to it.")

    def test_the_edit_by_hand(self):
        site = capture(Block(), X).train.noises[0]
        place = f"{FILE}:{Block.forward.__code__.co_firstlineno + 1}: replace "
        place += "`F.dropout(self.layer(x), 0.5, self.training)` by `self."
        assert edit_by_hand(site, REMOVE) == place.replace("by `self.", "by `self.layer(x)`.")
        assert edit_by_hand(site, NoiseAction("rate", 0.25)).endswith("nn.Dropout(0.25)` in `__init__`.")
        uniform = NoiseAction("uniform", 1.0, "its variance is 1/3 at most")
        assert edit_by_hand(site, uniform).endswith("varshift.nn.UniformDropout(1.0)` in `__init__`.")
        assert edit_by_hand(site).startswith(
            place + "noise(self.layer(x))`, with `self.noise = nn.Dropout(0.5)`"
        )
