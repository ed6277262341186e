"""The variant `matched`: a base brought into another's coordinates by weight matching. Other variants: variants.py."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sublim_interp.core.settings import Config
from sublim_interp.models.variants import Heads, Variant, ends, fold, llama_layers, readers, writers

_Matrices = tuple[Float[Tensor, "row d_model"], Float[Tensor, "row d_model"]]


class Matched(Config):
    """How long it looks."""

    rounds: int = Field(default=200, ge=1, le=10_000)
    """At most so many rounds over stream, heads and neurons; it ends before, where a round brings no gain."""


def _match(settings: Matched, models: Sequence[Any]) -> None:
    """Turns the first model's coordinates until its weights lie as near to the second's as can be found.

    Git Re-Basin's weight matching (Ainsworth et al., arXiv 2209.04836, section 3.2) with a transformer's own
    symmetries: the stream is rotated, heads are permuted and rotated inside, neurons permuted and their signs turned.
    Each move is the best there is while the others stand, so the distance never grows. Queries that share their keys
    keep their order.
    """
    own, other = models
    for model in models:
        fold(model.double())
    layers, heads = llama_layers(own)
    pairs = list(zip(layers, llama_layers(other)[0], strict=True))
    _turn_stream(own, zip(ends(own), ends(other), strict=True))  # words have no order to find
    reached = _likeness(own, other)
    for _ in range(settings.rounds):
        _turn_stream(own, _onto_stream(own, other))
        for layer, target in pairs:
            _match_heads(layer.self_attn, target.self_attn, heads)
            _match_neurons(layer.mlp, target.mlp)
        before, reached = reached, _likeness(own, other)
        if reached - before < 1e-6 * abs(reached):
            break
    own.float()


def _likeness(own: Any, other: Any) -> float:
    """Sum of the products of all weights."""
    return sum(float((a * b).sum()) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def _turn_stream(own: Any, by: Iterable[_Matrices]) -> None:
    """Rotates the first's residual stream to the second's, by orthogonal Procrustes.

    by: pairs of matrices, own and the second's, whose columns are the stream's dimensions
    """
    alike = torch.stack([a.T @ b for a, b in by]).sum(0)
    turn = _nearest_rotation(alike)
    for weight in ends(own):
        weight.copy_(weight @ turn)
    for layer in llama_layers(own)[0]:
        for linear in readers(layer):
            linear.weight.copy_(linear.weight @ turn)
        for linear in writers(layer):
            _put(linear, turn.T @ _with_bias(linear))


def _onto_stream(own: Any, other: Any) -> Iterator[_Matrices]:
    """Every pair of matrices that reads or writes the stream."""
    yield from zip(ends(own), ends(other), strict=True)
    for layer, target in zip(llama_layers(own)[0], llama_layers(other)[0], strict=True):
        yield from ((a.weight, b.weight) for a, b in zip(readers(layer), readers(target), strict=True))
        yield from ((_with_bias(a).T, _with_bias(b).T) for a, b in zip(writers(layer), writers(target), strict=True))


def _match_heads(own: Any, other: Any, heads: Heads) -> None:
    """Permutes heads of keys with their queries, and turns each inside so that no score and no output changes.

    A rotary pair of queries and keys is turned as its positions turn it; values and outputs take any rotation.
    """
    q, k, v, o = _by_head(own, heads)
    their_q, their_k, their_v, their_o = _by_head(other, heads)
    pairs = einsum(_pairs(q), _pairs(their_q).conj(), "a g p d, b g p d -> a b p")
    pairs = pairs + einsum(_pairs(k), _pairs(their_k).conj(), "a p d, b p d -> a b p")
    values = einsum(v, their_v, "a i d, b j d -> a b i j") + einsum(o, their_o, "a g d i, b g d j -> a b i j")
    gain = pairs.abs().sum(-1) + torch.linalg.matrix_norm(values, "nuc")
    place = torch.from_numpy(linear_sum_assignment(gain.T.numpy(), maximize=True)[1])  # of each of theirs, which of own
    theirs = torch.arange(heads.kv)
    phase = torch.polar(torch.ones(heads.kv, heads.size // 2, dtype=torch.float64), -pairs[place, theirs].angle())
    turn = _nearest_rotation(values[place, theirs])
    q = _real(_pairs(q[place]) * phase[:, None, :, None])
    k = _real(_pairs(k[place]) * phase[:, :, None])
    _put(own.q_proj, rearrange(q, "kv group size d -> (kv group size) d"))
    _put(own.k_proj, rearrange(k, "kv size d -> (kv size) d"))
    _put(own.v_proj, rearrange(einsum(turn, v[place], "kv i j, kv i d -> kv j d"), "kv size d -> (kv size) d"))
    o = einsum(o[place], turn, "kv group d i, kv i j -> kv group d j")
    own.o_proj.weight.copy_(rearrange(o, "kv group d size -> d (kv group size)"))


def _by_head(attention: Any, heads: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values, a bias as one more column, and outputs, head by head."""
    q, k, v = (_with_bias(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
    sizes = {"kv": heads.kv, "size": heads.size}
    return (
        rearrange(q, "(kv group size) d -> kv group size d", **sizes),
        rearrange(k, "(kv size) d -> kv size d", **sizes),
        rearrange(v, "(kv size) d -> kv size d", **sizes),
        rearrange(attention.o_proj.weight, "d (kv group size) -> kv group d size", **sizes),
    )


def _pairs(rows: Float[Tensor, "*head size d"]) -> Tensor:
    """Rotary pairs as complex numbers: dimension i with i + size / 2."""
    first, second = rows.chunk(2, dim=-2)
    return torch.complex(first, second)


def _real(pairs: Tensor) -> Float[Tensor, "*head size d"]:
    return torch.cat([pairs.real, pairs.imag], dim=-2)


def _match_neurons(own: Any, other: Any) -> None:
    """Permutes neurons. The sign of up with down is free, that of the gate is not."""
    gate = _with_bias(own.gate_proj) @ _with_bias(other.gate_proj).T
    rest = _with_bias(own.up_proj) @ _with_bias(other.up_proj).T + own.down_proj.weight.T @ other.down_proj.weight
    place: Int[Tensor, " neuron"] = torch.from_numpy(
        linear_sum_assignment((gate + rest.abs()).T.numpy(), maximize=True)[1]
    )
    sign = torch.where(rest[place, torch.arange(len(place))] < 0, -1.0, 1.0).double()
    _put(own.gate_proj, _with_bias(own.gate_proj)[place])
    _put(own.up_proj, _with_bias(own.up_proj)[place] * sign[:, None])
    own.down_proj.weight.copy_(own.down_proj.weight[:, place] * sign)


def _nearest_rotation(alike: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """The rotation or reflection R with the largest tr(Rᵀ `alike`)."""
    u, _, vh = torch.linalg.svd(alike)
    return u @ vh


def _with_bias(linear: Any) -> Float[Tensor, "d_out columns"]:
    bias = [] if linear.bias is None else [linear.bias[:, None]]
    return torch.cat([linear.weight, *bias], dim=1)


def _put(linear: Any, rows: Float[Tensor, "d_out columns"]) -> None:
    linear.weight.copy_(rows[:, : linear.in_features])
    if linear.bias is not None:
        linear.bias.copy_(rows[:, -1])


matched = Variant(
    _match, "The first base, folded, in the second's coordinates: weights matched by rotations and permutations.",
    Matched, parents=2, same_function=True,
)  # fmt: skip
