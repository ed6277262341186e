"""Many small networks at once: their weights are stacked, and each trains as if it were alone."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.keys import sha256_of


class Layer(NamedTuple):
    """One linear layer of every replicate."""

    weight: Float[Tensor, "replicate d_in d_out"]
    bias: Float[Tensor, "replicate d_out"]


Network = tuple[Layer, ...]
"""A perceptron of every replicate: linear layers with a ReLU between two of them."""

Loss = Callable[[Network, int], Float[Tensor, " replicate"]]
"""The loss of every replicate at an update, 0, 1, …: a mean over its own images."""


def generator(*what: int | str) -> torch.Generator:
    """Random numbers of their own for whatever is named, on the CPU: equal names, equal numbers."""
    return torch.Generator().manual_seed(int(sha256_of(list(what))[:15], 16))


def initial(sizes: Sequence[int], seeds: Sequence[int], side: str, device: str) -> Network:
    """The networks before training: weights are normal with variance 1 / d_in, biases zero.

    sizes: width of the input, of each hidden layer, and of the output
    seeds: one a replicate
    side: which of a seed's initialisations
    device: where they are put
    """
    draws = [generator(seed, "initial", side) for seed in seeds]
    layers = []
    for d_in, d_out in pairwise(sizes):
        weight = torch.stack([torch.randn(d_in, d_out, generator=draw) for draw in draws]) / d_in**0.5
        layers.append(Layer(weight.to(device), torch.zeros(len(seeds), d_out, device=device)))
    return tuple(layers)


def logits(network: Network, images: Float[Tensor, "replicate image pixel"]) -> Float[Tensor, "replicate image logit"]:
    """What each replicate's network says of its own images."""
    hidden = images
    for i, layer in enumerate(network):
        hidden = torch.baddbmm(layer.bias[:, None], F.relu(hidden) if i else hidden, layer.weight)
    return hidden


def fit(
    start: Network,
    loss: Loss,
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    updates: int,
    progress: Callable[[float], None],
    along: Loss | None = None,
) -> Network:
    """The networks after training. The sum of the losses trains each by its own, since no two share a weight.

    start: as they begin; it stays as it is
    loss: of every replicate
    optimizer: made from the parameters; it must treat each number alone, as SGD and Adam do
    updates: how many
    progress: told the share of them that is made
    along: takes out of each gradient, replicate by replicate, its part along the gradient of this loss; None: nothing
    """
    parameters = [torch.nn.Parameter(t.clone()) for layer in start for t in layer]
    network: Network = tuple(Layer(w, b) for w, b in zip(parameters[::2], parameters[1::2], strict=True))
    stepper = optimizer(parameters)
    for update in range(updates):
        stepper.zero_grad()
        loss(network, update).sum().backward()
        if along is not None:
            _take_out(parameters, torch.autograd.grad(along(network, update).sum(), parameters))
        stepper.step()
        progress((update + 1) / updates)
    return tuple(Layer(layer.weight.detach(), layer.bias.detach()) for layer in network)


def _take_out(parameters: Sequence[torch.nn.Parameter], along: Sequence[Tensor]) -> None:
    """Makes the gradient of each replicate orthogonal to another one's, over all of its weights together.

    Weights without a gradient of their own, such as those of logits that are not learnt, stay without one.
    """
    own = [p.grad for p in parameters if p.grad is not None]
    along = [a * (g != 0) for g, a in zip(own, along, strict=True)]
    none = torch.zeros(len(own[0]), device=own[0].device)
    inner = sum(((g * a).flatten(1).sum(1) for g, a in zip(own, along, strict=True)), start=none)
    share = inner / sum((a.square().flatten(1).sum(1) for a in along), start=none)
    for g, a in zip(own, along, strict=True):
        g.sub_(share.view(-1, *[1] * (g.dim() - 1)) * a)
