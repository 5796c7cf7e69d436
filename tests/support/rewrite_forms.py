"""Modules with one noise call each, at rate 0.5, in every form that people write; other noise has 0.25."""

import functools

import rewrite_helpers as helpers
import torch
import torch.nn.functional as F
import torch.nn.functional as functional_alias
from rewrite_helpers import drop_connect, dropout_add, gate, mask_multiply
from torch import nn
from torch.nn.functional import dropout
from torch.nn.functional import dropout as dp


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def wrapped_with(text):
    def decorate(function):
        signature = text

        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            assert signature == text
            return function(self, *args, **kwargs)

        return wrapper

    return decorate


def bare(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.p = 0.5


class TwoOnALine(Base):
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training) + F.dropout(x, 0.25, self.training)


class EqualTexts(Base):
    def forward(self, x):
        x, y = F.dropout(x, 0.25, self.training), self.layer(x)
        return F.dropout(y, self.p, self.training) + x


class Nested(Base):
    def forward(self, x):
        return F.dropout(F.dropout(self.layer(x), 0.25, self.training), 0.5, self.training)


class NestedInner(Base):
    def forward(self, x):
        return F.dropout(F.dropout(self.layer(x), 0.5, self.training), 0.25, self.training)


class SeveralLines(Base):
    def forward(self, x):
        x = self.layer(x)
        return (
            F.dropout(
                x,  # the signal
                p=self.p,
                training=self.training,
            )
            + x
        )


class Walrus(Base):
    def forward(self, x):
        if (y := F.dropout(self.layer(x), 0.5, self.training)) is not None:
            x = y + x
        return x


class Annotated(Base):
    def forward(self, x: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        y: torch.Tensor = F.dropout(self.layer(x), 0.5, self.training)
        return y * scale


class Stars(Base):
    def settings(self):
        return {"p": 0.5, "training": self.training}

    def forward(self, *args, **kwargs):
        return F.dropout(self.layer(*args), **self.settings(), **kwargs)


class StarArguments(Base):
    def forward(self, x):
        arguments = (self.layer(x), 0.5, self.training)
        return F.dropout(*arguments)


class NestedFunction(Base):
    def forward(self, x):
        def inner(value):
            return F.dropout(value, 0.5, self.training)

        return inner(self.layer(x))


class NestedWithoutSelf(Base):
    def forward(self, x):
        training = self.training

        def inner(value):
            return F.dropout(value, 0.5, training)

        return inner(self.layer(x))


class Lambda(Base):
    def forward(self, x):
        return (lambda value: F.dropout(value, 0.5, self.training))(self.layer(x))


class InParent(TwoOnALine):
    pass


def forward_of_module(self, x):
    return F.dropout(self.layer(x), 0.5, self.training)


class Assigned(Base):
    forward = forward_of_module


class AssignedLambda(Base):
    forward = lambda self, x: F.dropout(self.layer(x), 0.5, self.training)  # noqa: E731


class Private(Base):
    def __init__(self):
        super().__init__()
        self.__rate = 0.5

    def __drop(self, x):
        return F.dropout(x, self.__rate, self.training)

    def forward(self, x):
        return self.__drop(self.layer(x))


class JitIgnored(Base):
    @torch.jit.ignore
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class NoGrad(Base):
    @torch.no_grad()
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class Autocast(Base):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class Decorated(Base):
    @wrapped
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class DecoratedTwice(Base):
    @wrapped_with("a")
    @wrapped
    @wrapped_with("b")
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


def made_in_function(rate):
    scale = 1.0

    class InFunction(Base):
        def forward(self, x):
            return F.dropout(self.layer(x), rate, self.training) * scale

    return InFunction


class LocalAlias(Base):
    def forward(self, x):
        f = F.dropout
        return f(self.layer(x), 0.5, self.training)


class EitherAlias(Base):
    def forward(self, x):
        f = F.dropout if x.dim() else F.alpha_dropout
        return f(self.layer(x), 0.5, self.training)


class ImportedAs(Base):
    def forward(self, x):
        return dp(self.layer(x), 0.5, self.training)


class ImportedInside(Base):
    def forward(self, x):
        from torch.nn.functional import dropout as inner

        return inner(self.layer(x), 0.5, self.training)


class ModuleAlias(Base):
    def forward(self, x):
        return functional_alias.dropout(self.layer(x), 0.5, self.training)


class FromImport(Base):
    def forward(self, x):
        return dropout(self.layer(x), 0.5, self.training)


class AsDefault(Base):
    def forward(self, x, f=F.dropout):
        return f(self.layer(x), 0.5, self.training)


class BuiltIn(Base):
    def forward(self, x):
        return torch.dropout(self.layer(x), 0.5, self.training)


class PartialAttribute(Base):
    def __init__(self):
        super().__init__()
        self.f = functools.partial(F.dropout, p=0.5)

    def forward(self, x):
        return self.f(self.layer(x), training=self.training)


class Property(Base):
    @property
    def noisy(self):
        return F.dropout(self.layer.weight, 0.5, self.training)

    def forward(self, x):
        return F.linear(x, self.noisy)


class Parent(Base):
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class Super(Parent):
    def forward(self, x):
        return super().forward(x) + x


class SuperTwice(Super):
    def forward(self, x):
        return 2 * super().forward(x)


class SuperNamed(Parent):
    def forward(self, x):
        return super(SuperNamed, self).forward(x) + x  # noqa: UP008


class DecoratedParent(Base):
    @wrapped
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class SuperOfDecorated(DecoratedParent):
    @wrapped
    def forward(self, x):
        return super().forward(x) + x


class ParentByName(Parent):
    def forward(self, x):
        return Parent.forward(self, x) + x


class OwnState(Parent):
    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "cache"}


class OwnDeepcopy(Parent):
    def __deepcopy__(self, memo):
        new = OwnDeepcopy()
        new.load_state_dict(self.state_dict())
        return new


class OwnDeepcopyByType(Parent):
    def __deepcopy__(self, memo):
        new = type(self)()
        new.load_state_dict(self.state_dict())
        return new


class OwnReduce(Parent):
    def __reduce__(self):
        return OwnReduce, (), self.__dict__


class HelperWhole(Base):
    def forward(self, x):
        return x + drop_connect(self.layer(x), 0.5, self.training)


class HelperInside(Base):
    def forward(self, x):
        return dropout_add(self.layer(x), x, 0.5, self.training)


class HelperOfModule(Base):
    def forward(self, x):
        return helpers.dropout_add(self.layer(x), residual=x, prob=0.5, training=self.training)


class HelperDecorated(Base):
    def forward(self, x):
        return helpers.decorated_dropout_add(self.layer(x), x, prob=0.5, training=self.training)


class HelperInVariable(Base):
    def forward(self, x):
        interface = dropout_add
        if self.p < 0:
            interface = helpers.other_dropout_add
        return interface(self.layer(x), x, 0.5, self.training)


class HelperOfHelper(Base):
    def forward(self, x):
        return helpers.outer(self.layer(x), x, 0.5, self.training)


class HelperTakesModule(Base):
    def forward(self, x):
        return helpers.eager(self, self.layer(x), dropout=0.5 if self.training else 0.0)


class HelperOfMultiplication(Base):
    def forward(self, x):
        return x + mask_multiply(self.layer(x), 0.5, self.training)


class HelperMethod(Base):
    def _drop(self, x, p):
        mask = (torch.rand_like(x) >= p).to(x.dtype)
        return x * mask / (1 - p)

    def forward(self, x):
        x = self.layer(x)
        return x + self._drop(x, 0.5) if self.training else 2 * x


class StaticHelper(Base):
    @staticmethod
    def drop(x, training):
        return F.dropout(x, 0.5, training)

    def forward(self, x):
        return self.drop(self.layer(x), self.training)


class SharedModule(Base):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.layer(x)) + F.dropout(x, 0.25, self.training)


class InPlace(Base):
    def forward(self, x):
        x = self.layer(x)
        F.dropout(x, 0.5, self.training, inplace=True)
        return x


class DefaultTraining(Base):
    def forward(self, x):
        x = self.layer(x)
        return F.dropout(x, self.p if self.training else 0.0)


class InSequential(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Generator(Base):
    def forward(self, x):
        return sum(F.dropout(value, 0.5, self.training) for value in (self.layer(x), x))


class Comprehension(Base):
    def forward(self, x):
        return sum([F.dropout(value, 0.5, self.training) for value in (self.layer(x), x)])


class Loop(Base):
    def forward(self, x):
        for _ in range(2):
            x = F.dropout(self.layer(x), 0.5, self.training)
        return x


class MethodTwice(Base):
    def drop(self, x):
        return F.dropout(x, 0.5, self.training)

    def forward(self, x):
        return self.drop(self.layer(x)) + self.drop(x)


class SuperCalledTwice(Parent):
    def forward(self, x):
        for _ in range(2):
            x = super().forward(x)
        return x


class NoSelf(Base):
    def forward(*args):
        return F.dropout(args[0].layer(args[1]), 0.5, args[0].training)


class SelfReassigned(Base):
    def forward(self, x):
        y = F.dropout(self.layer(x), 0.5, self.training)
        self = None
        return y


class BareWrapper(Base):
    @bare
    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, self.training)


class MaskArithmetic(Base):
    def forward(self, x):
        x = self.layer(x)
        return x * (torch.rand_like(x) > 0.5) * 2 if self.training else x


class Gated(Base):
    def forward(self, x):
        return gate(self.layer(x), 0.5, self.training)


ONE = [
    *(TwoOnALine, EqualTexts, Nested, NestedInner, SeveralLines, Walrus, Annotated, Stars, StarArguments),
    *(NestedFunction, NestedWithoutSelf, Lambda, InParent, Assigned, AssignedLambda, Private, JitIgnored),
    *(NoGrad, Autocast, Decorated, DecoratedTwice, made_in_function(0.5), LocalAlias, EitherAlias),
    *(ImportedAs, ImportedInside, ModuleAlias, FromImport, AsDefault, BuiltIn, PartialAttribute, Parent),
    *(Super, SuperTwice, SuperNamed, SuperOfDecorated, ParentByName, OwnState, OwnDeepcopy),
    *(OwnDeepcopyByType, OwnReduce, HelperWhole, HelperInside, HelperOfModule, HelperDecorated),
    *(HelperInVariable, HelperOfHelper, HelperTakesModule, HelperOfMultiplication, HelperMethod),
    *(StaticHelper, SharedModule, InPlace, DefaultTraining, InSequential, Gated),
]
GROUPS = [Generator, Comprehension, Loop, MethodTwice, SuperCalledTwice]
REFUSED = [NoSelf, SelfReassigned, BareWrapper, MaskArithmetic]
