"""Features of a module: copies, files, and weights made of others."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, skip_init

from docs.features.subject import Feature, H, I, NoSuchThing, Subject, batch, same, same_with_gradients, tensors

TORCH = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


def made_of_others(change: Callable[[Any], Any]) -> Callable[[Subject], None]:
    """A feature: ``change`` replaces weight_hh_l0; the layer follows its weight, also after a step of training."""

    def attempt(of: Subject) -> None:
        layer, x = of.layer(), batch().requires_grad_()
        change(layer)
        layer.eval()  # the iteration of a spectral norm stands still
        for _ in range(2):
            results = layer(x)  # first: pruning sets the weight when the layer is called
            same_with_gradients(layer, x, results, of.expected(layer, x))
            with torch.no_grad():
                for p in layer.parameters():
                    p.mul_(1.5)

    return attempt


def copied(of: Subject) -> None:
    """The copy is of its own."""
    layer, x = of.layer(), batch()
    parametrizations.weight_norm(layer, "weight_hh_l0")
    layer(x)
    twin, expected = copy.deepcopy(layer), of.expected(layer, x)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    same(twin(x), expected)


def skipped(of: Subject) -> None:
    """Built without drawing weights, then filled."""
    layer, x = skip_init(of.make, I, H), batch()
    layer.load_state_dict(of.layer().state_dict())
    same(layer(x), of.expected(of.layer(), x))


def pickled(of: Subject) -> None:
    """After a call."""
    layer, x = of.layer(), batch()
    layer(x)
    same(pickle.loads(pickle.dumps(layer))(x), of.expected(layer, x))


def loaded(of: Subject) -> None:
    """From a file, strictly; the results are those of torch.nn's layer."""
    name = of.make.__name__
    if name not in TORCH:
        raise NoSuchThing
    theirs, layer, x = TORCH[name](I, H, 2), of.layer(2), batch()
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file))
    same(layer(x), tensors(theirs(x)))
    same(layer(x), of.expected(theirs, x))


FEATURES = [
    Feature("`copy.deepcopy` after `weight_norm` and a call", copied),
    Feature("`spectral_norm`", made_of_others(lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"))),
    Feature("`orthogonal`", made_of_others(lambda m: parametrizations.orthogonal(m, "weight_hh_l0"))),
    Feature("pruning", made_of_others(lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.5))),
    Feature("`skip_init`", skipped),
    Feature("`pickle`", pickled),
    Feature("loads the `state_dict` of torch.nn", loaded),
]
