"""Functions that make noise for the modules of `rewrite_forms`."""

import functools

import torch
from torch.nn import functional as F


def plain(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def drop_connect(x, p, training):
    if not training:
        return x
    keep = 1 - p
    mask = torch.floor(keep + torch.rand((x.shape[0], 1), dtype=x.dtype))
    return x / keep * mask


def dropout_add(x, residual, prob, training):
    return residual + F.dropout(x, p=prob, training=training)


def other_dropout_add(x, residual, prob, training):
    return residual - F.dropout(x, p=prob, training=training)


@plain
def decorated_dropout_add(x, residual, *, prob=0.1, training=True):
    return residual + F.dropout(x, p=prob, training=training)


def outer(x, residual, prob, training):
    y = dropout_add(x, residual, prob, training)
    return y + dropout_add(x, residual, 0.25, training)


def eager(module, x, dropout=0.0):
    weights = torch.softmax(x, -1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return weights @ x.transpose(-1, -2)


def mask_multiply(x, p, training):
    if not training:
        return x
    return x.mul(torch.rand_like(x).gt(p).to(x.dtype) / (1 - p))


def gate(x, rate, training):
    return torch.sigmoid(x) * F.dropout(x, rate, training)


def unnamed(function):
    def wrapper(self, x):
        return function(self, x)

    return wrapper
