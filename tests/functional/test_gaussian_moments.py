"""Moments of functions of a Gaussian, against 30-digit quadrature and against their own derivatives."""

import pytest
import torch
from torch.nn import functional as F

from varshift.functional import KalmanState, elementwise_moments, rectified_moments
from varshift.functional._gaussian_moments import exponential_moments, gelu_moments, piecewise_moments

POINTS = ((0.0, 1.0), (0.5, 1.0), (-1.0, 1.0), (2.0, 0.5), (0.3, 3.0))  # mean, standard deviation
HARD_SIGMOID = ((-3.0, 3.0), ((0.0,), (0.5, 1 / 6), (1.0,)))
HARD_SWISH = ((-3.0, 3.0), ((0.0,), (0.0, 0.5, 1 / 6), (0.0, 1.0)))
CLOSED = {
    "relu": (
        rectified_moments,
        (0.398942280401, 0.697796557401, 0.0833154705877, 2.00000357263, 1.35280599361),
        (0.340845056908, 0.553440704454, 0.0683983157045, 0.249984936918, 3.43420827722),
    ),
    "leaky": (
        lambda state: rectified_moments(state, 0.1),
        (0.359048052361, 0.678016901661, -0.0250160764711, 2.00000321537, 1.24752539425),
        (0.376084496096, 0.582750213637, 0.0939605814283, 0.249986373698, 3.74622980094),
    ),
    "relu6": (
        lambda state: piecewise_moments(state, (0.0, 6.0), ((0.0,), (0.0, 1.0), (6.0,))),
        (0.398942280245, 0.697796554146, 0.0833154705875, 2.00000357263, 1.31964294024),
        (0.340845055108, 0.553440668849, 0.0683983157024, 0.249984936918, 3.05545856926),
    ),
    "hardtanh": (
        lambda state: piecewise_moments(state, (-1.0, 1.0), ((-1.0,), (0.0, 1.0), (1.0,))),
        (0.0, 0.331510236361, -0.609548422215, 0.99575464877, 0.0782095829768),
        (0.516058550962, 0.45340799021, 0.307816028224, 0.00142415834674, 0.819377924009),
    ),
    "hardsigmoid": (
        lambda state: piecewise_moments(state, *HARD_SIGMOID),
        (0.5, 0.58300905729, 0.33474725956, 0.832625774782, 0.534094186452),
        (0.0276390910565, 0.0274538581626, 0.0266704511055, 0.00666803035269, 0.12834808743),
    ),
    "hardswish": (
        lambda state: piecewise_moments(state, *HARD_SWISH),
        (0.166216700656, 0.457097479577, -0.171877560091, 1.70597029407, 1.1806389765),
        (0.303939383561, 0.491875015437, 0.0790120263157, 0.335485781011, 3.66228443852),
    ),
    "gelu": (
        gelu_moments,
        (0.282094791774, 0.584085129886, -0.0200544163596, 1.94437215222, 1.29164885852),
        (0.345644011024, 0.57752642923, 0.0667345845678, 0.290909064384, 3.53881783889),
    ),
    "elu": (
        lambda state: exponential_moments(state, 1.0, 1.0),
        (0.160520572267, 0.570859819895, -0.454763945625, 2.00000034976, 1.01020770132),
        (0.619178563372, 0.784540204473, 0.261998877391, 0.24999840648, 4.53224745166),
    ),
}
SMOOTH = {
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        (0.282038588079, 0.584034948742, -0.0200796005553, 1.94447983489, 1.29170390532),
        (0.345647945868, 0.577577314435, 0.0667387618073, 0.291150285277, 3.53893643848),
    ),
    "silu": (
        F.silu,
        (0.206620964142, 0.5, -0.125321949691, 1.7692861003, 1.18995630473),
        (0.313083296994, 0.507447964729, 0.0717709780374, 0.286576030061, 3.57516046368),
    ),
    "tanh": (
        torch.tanh,
        (0.0, 0.295452877052, -0.550400490793, 0.943792031396, 0.07633295695),
        (0.394294490398, 0.350714649978, 0.247459790528, 0.0040665193319, 0.740509216195),
    ),
    "sigmoid": (
        torch.sigmoid,
        (0.5, 0.602027132817, 0.303265329856, 0.870993463623, 0.534407924433),
        (0.0433790358581, 0.0406040305776, 0.0333520893986, 0.00316715775089, 0.134412325025),
    ),
    "softplus": (
        F.softplus,
        (0.806059183347, 1.08172569838, 0.406856283088, 2.14032820578, 1.54924248909),
        (0.271514501801, 0.382519507943, 0.108333571514, 0.190045489283, 3.13307176902),
    ),
    "mish": (
        F.mish,
        (0.240403888375, 0.5684135428, -0.134606297546, 1.93875109372, 1.2395402749),
        (0.39454816283, 0.613300988014, 0.0936952753894, 0.282165744222, 3.68092206902),
    ),
}


def states(dtype=torch.float64):
    points = torch.tensor(POINTS, dtype=dtype)
    return KalmanState(points[:, 0], points[:, 1].square())


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_against_vectors(name):
    rule, mean, var = CLOSED[name]
    found = rule(states())
    # the vectors have 12 digits
    torch.testing.assert_close(found.mean, torch.tensor(mean, dtype=torch.float64), rtol=2e-11, atol=1e-12)
    torch.testing.assert_close(found.var, torch.tensor(var, dtype=torch.float64), rtol=5e-11, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_quadrature_against_vectors(name):
    function, mean, var = SMOOTH[name]
    found = elementwise_moments(function, states())
    for part, wanted in ((found.mean, mean), (found.var, var)):
        wanted = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(part[:4], wanted[:4], rtol=1e-10, atol=1e-11)
        # at a standard deviation of 3, for which the docstring promises this much
        torch.testing.assert_close(part[4:], wanted[4:], rtol=0, atol=1e-4 if name == "tanh" else 1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_single_precision(name):
    rule, mean, var = CLOSED[name]
    found = rule(states(torch.float32))
    torch.testing.assert_close(found.mean, torch.tensor(mean), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(found.var, torch.tensor(var), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*CLOSED, *SMOOTH])
def test_gradients(name):
    rule = CLOSED[name][0] if name in CLOSED else lambda state: elementwise_moments(SMOOTH[name][0], state)
    mean, var = (part.clone().requires_grad_() for part in states())
    assert torch.autograd.gradcheck(lambda m, v: tuple(rule(KalmanState(m, v))), (mean, var))


@pytest.mark.parametrize("name", [*CLOSED, *SMOOTH])
def test_extremes_are_finite_and_no_variance_is_negative(name):
    rule = CLOSED[name][0] if name in CLOSED else lambda state: elementwise_moments(SMOOTH[name][0], state)
    mean = torch.tensor([-50.0, -5.0, 0.0, 5.0, 50.0]).repeat(4).requires_grad_()
    var = torch.tensor([0.0, 1e-6, 1.0, 100.0]).repeat_interleave(5).requires_grad_()
    found = rule(KalmanState(mean, var))
    assert torch.isfinite(found.mean).all()
    assert (found.var >= 0).all()
    assert (found.var <= var * 1.3 + 1e-4).all()  # no function here is steeper than 1.13
    (found.mean + found.var).sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(var.grad).all()
