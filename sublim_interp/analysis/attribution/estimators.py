"""Estimators: along which direction in the weights lists are scored for what they do to a metric.

A list's score is the product of its gradient and that direction. First order takes the metric's gradient itself, as if
each list were learnt alone. The others divide it by what all lists together push: along a direction that many lists
push alike, one list less hardly matters.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sublim_interp.analysis.sketch import CountSketch
from sublim_interp.core.device import device_of
from sublim_interp.models.forward import in_single, resting
from sublim_interp.training.batches import IGNORE, Example, micro_batches

FITTED = 1024
"""Of so many lists at most, evenly spaced, is the curvature measured."""
DAMPING = 0.1
"""What is added to the curvature, as a share of its mean; as Grosse et al. 2308.03296 choose it."""
DIMENSIONS = 4096
"""Dimensions that `trak` projects gradients to."""
_NUMBERS, _AT_ONCE = 2**26, 64
"""Most numbers, and most lists, of gradients that are held at once."""


def gradient(model: torch.nn.Module, rows: Sequence[Example], slope: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The metric's gradient as it is: first order. Source: Pruthi et al. 2002.08484, equation 1, at one checkpoint."""
    return slope


@torch.no_grad()
def fisher(model: torch.nn.Module, rows: Sequence[Example], slope: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The metric's gradient divided by the Fisher matrix of the lists: influence functions, parameter by parameter.

    model: at whose weights gradients are taken
    rows: the lists; the Fisher matrix is that of their own tokens
    slope: the metric's gradient, by name of each parameter that trains

    Within a matrix the Fisher is taken to be diagonal in the eigenbases of E[GGᵀ] and E[GᵀG], where G is one list's
    gradient; its diagonal there is exact. Other parameters have their own diagonal. Two passes over the lists.
    Source: the correction of the eigenvalues is George et al. 1806.03884 (EK-FAC), applied to influence by Grosse et
    al. 2308.03296; the bases are those of Gupta et al. 1802.09568, which need no hooks in the modules.
    """
    left: dict[str, Tensor] = {n: torch.zeros(len(s), len(s)).to(s) for n, s in slope.items() if s.dim() == 2}
    right: dict[str, Tensor] = {n: torch.zeros(len(slope[n].T), len(slope[n].T)).to(slope[n]) for n in left}
    for each in gradients(model, rows, slope):
        for n in left:
            left[n] += einsum(each[n], each[n], "list a i, list b i -> a b")
            right[n] += einsum(each[n], each[n], "list o a, list o b -> a b")
    bases = {n: (torch.linalg.eigh(left[n])[1], torch.linalg.eigh(right[n])[1]) for n in left}

    def turned(name: str, value: Tensor) -> Tensor:
        return bases[name][0].T @ value @ bases[name][1] if name in bases else value

    squares = {n: torch.zeros_like(s) for n, s in slope.items()}
    count = 0
    for each in gradients(model, rows, slope):
        count += len(next(iter(each.values())))
        for n in squares:
            squares[n] += turned(n, each[n]).square().sum(0)
    found = {}
    for n, s in slope.items():
        curvature = squares[n] / count
        bent = turned(n, s) / (curvature + DAMPING * curvature.mean() + torch.finfo(s.dtype).tiny)
        found[n] = bases[n][0] @ bent @ bases[n][1].T if n in bases else bent
    return found


@torch.no_grad()
def trak(model: torch.nn.Module, rows: Sequence[Example], slope: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The metric's gradient divided by the Gram matrix of the lists' gradients, all projected at random.

    model, rows, slope: as of `fisher`

    Across all parameters together, (ΦᵀΦ/n + λI)⁻¹; Φ are gradients projected to `DIMENSIONS`, each entry going with a
    random sign into one of them. Gradients of no more entries are not projected, and the result is exact. One model
    stands for the ensemble, and the probability of a list is taken to be small.
    Source: Park et al. 2303.14186 (TRAK), equation 17; the projection is that of Charikar et al. 2002 (count sketch).
    """
    first = next(iter(slope.values()))
    total = sum(s.numel() for s in slope.values())
    projected = CountSketch(total, DIMENSIONS, like=first)
    size = projected.size
    gram, count = torch.zeros(size, size).to(first), 0
    for each in gradients(model, rows, slope):
        phi = projected(torch.cat([each[n].flatten(1) for n in slope], 1))
        gram += phi.T @ phi
        count += len(phi)
    gram /= count
    gram += (DAMPING * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny) * torch.eye(size).to(first)
    along = projected.signs * torch.linalg.solve(gram, projected.of(slope))[projected.place]
    pieces = along.split([s.numel() for s in slope.values()])
    return {n: piece.view_as(s) for (n, s), piece in zip(slope.items(), pieces, strict=True)}


def gradients(
    model: torch.nn.Module, rows: Sequence[Example], names: Mapping[str, Tensor]
) -> Iterator[dict[str, Float[Tensor, "list ..."]]]:
    """∇ log p of each list by itself, in float32, some lists at a time; of `FITTED` of them where they are more.

    names: the parameters, by name; values are not read
    """
    some = rows[:: -(-len(rows) // FITTED)]
    every = {n: p.detach() for n, p in model.named_parameters()}
    own, device = {n: every[n] for n in names}, device_of(model)

    def said(own: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        asked = {"input_ids": ids[None], "use_cache": False}
        logits = in_single(functional_call(model, {**every, **own}, (), asked).logits[0])
        log = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[:, None])[:, 0]
        return (log * (labels != IGNORE)).sum()

    at_once = max(1, min(_AT_ONCE, _NUMBERS // sum(p.numel() for p in own.values())))
    with resting(model), sdpa_kernel(SDPBackend.MATH):  # fused attention is not made for many lists apart
        for batch in micro_batches(some, pad=0, parts=-(-len(some) // at_once)):
            found = vmap(grad(said), in_dims=(None, 0, 0))(own, batch.ids.to(device), batch.labels.to(device))
            yield {n: in_single(g) for n, g in found.items()}
