"""What a direction does to a model: logit lens, dose curve, steering, ablation."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.kinship import base_of, require_space
from sublim_interp.analysis.probes import (
    Metric,
    Subject,
    asked_of,
    batches,
    logits_of,
    measure,
    model_of,
    part_of,
    residuals,
)
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import (
    Positions,
    added,
    capture,
    edit,
    lens_of,
    matching,
    names_of,
    unit_vector,
    without,
)
from sublim_interp.models.prompts import Prompts

if TYPE_CHECKING:
    import pandas as pd


def logit_lens(
    model: Subject,
    d: Directions,
    prompts: Prompts = None,
    k: int = 10,
    across_bases: bool = False,
    tuned: Prompts = None,
) -> "pd.DataFrame":
    """Which tokens a direction would raise, read straight from the unembedding.

    prompts: their mean last residual is where head(final norm(x)) is linearised; replicates bring their questions
    k: how many tokens a layer
    across_bases: reads directions of another base too, whose axes are unrelated
    tuned: texts, chats or ids on which a map from each hook's stream to the last layer's is fitted; directions are
        taken through it, so that what later layers make of them is counted; 64 or more texts, others than the prompts

    Returns a row a layer and rank: layer, rank, token (its id), text (the id again where no tokenizer is known),
    change. The change is the derivative along the whole vector, in logits, minus its mean over the vocabulary, as a
    shift of all logits says nothing. Without `tuned` layers in between are skipped.
    Raises SublimError for directions of another base, and for too few tokens in `tuned`.
    Source: nostalgebraist 2020, "logit lens". The maps are those of Din et al. 2303.09435, by least squares; Belrose et
    al. 2303.08112 ("tuned lens") train theirs on the output.
    """
    import pandas as pd

    ours = model_of(model)
    require_space("logit_lens", model, ours, d.space, across_bases)
    norm, head = lens_of(ours)
    if not 1 <= k <= head.weight.shape[0]:
        raise SublimError(f"logit_lens: k is {k}; the model has {head.weight.shape[0]} tokens")
    like, base = next(ours.parameters()), base_of(model, ours)
    asked = asked_of(prompts, model, model=ours)
    at = rearrange(residuals(ours, names_of(ours, "resid_post")[-1:], asked), "prompt 1 d_model -> prompt d_model")
    at = at.mean(0).to(like)
    rows = []
    vectors = d.vectors.to(like)
    if tuned is not None:
        vectors = _through_later_layers(ours, d, asked_of(tuned, model, model=ours)).to(like)
    for layer, vector in enumerate(vectors):
        change = torch.func.jvp(lambda x: head(norm(x)), (at[None],), (vector[None],))[1][0]
        change = (change - change.mean()).detach()
        top = change.topk(k)
        ids = top.indices.tolist()
        texts = base.chat.tokens(ids) if base else list(map(str, ids))
        for rank, (token, text, value) in enumerate(zip(ids, texts, top.values.tolist(), strict=True)):
            rows.append({"layer": layer, "rank": rank, "token": token, "text": text, "change": value})
    return pd.DataFrame(rows)


def _through_later_layers(
    model: torch.nn.Module, d: Directions, texts: Sequence[Sequence[int]]
) -> Float[Tensor, "layer d_model"]:
    """Each direction as the last layer has it: through the linear map that best takes its hook's stream there.

    Fitted on every token of the texts by least squares, with a penalty of a thousandth of the stream's variance.
    """
    last = names_of(model, "resid_post")[-1]
    streams: dict[str, list[Tensor]] = {name: [] for name in {*d.names, last}}
    for _, ids in batches(texts):
        with torch.no_grad(), capture(model, list(streams)) as seen:
            logits_of(model, ids)
        for name, pieces in streams.items():
            pieces.append(seen[name].flatten(0, 1).cpu().double())
    joined = {name: torch.cat(pieces) for name, pieces in streams.items()}
    if len(joined[last]) <= joined[last].shape[1]:
        raise SublimError(
            f"logit_lens: tuned has {len(joined[last])} tokens; a map of {joined[last].shape[1]} dimensions needs more"
        )
    centred = {name: x - x.mean(0) for name, x in joined.items()}
    out = []
    for name, vector in zip(d.names, d.vectors, strict=True):
        x = centred[name]
        gram = x.T @ x
        penalty = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        out.append(vector.cpu().double() @ torch.linalg.solve(gram + penalty, x.T @ centred[last]))
    return torch.stack(out)


def steer(
    model: torch.nn.Module,
    vector: Float[Tensor, " d_model"] | Directions,
    at: str,
    positions: Positions = None,
    scale: float | int = 1.0,
    across_bases: bool = False,
) -> AbstractContextManager[None]:
    """Inside the block a vector is added at a hook, in every forward of the model.

    model: the one that runs in the block
    vector: [d_model], in residual units; of directions the one that they have at the hook
    at: the hook's name, such as `blocks.1.hook_resid_post`
    positions: where in the text, from the end where negative; everywhere where None
    scale: times the vector
    across_bases: takes directions of another base too, whose axes are unrelated

    Raises SublimError for a hook that the model or the directions lack, and for directions of another base. A vector of
    one's own says nothing of its base, so it is not checked.
    """
    if not isinstance(model, torch.nn.Module):
        raise SublimError(f"steer acts on the model that runs, not a {type(model).__name__}: take x.load() or x.model")
    (at,) = _hooks(model, at, 1)
    if isinstance(vector, Directions):
        require_space("steer", model, model, vector.space, across_bases)
        vector = vector.at(at)
    return added(model, scale * vector, at, positions)


def steering(
    model: Subject,
    d: Directions,
    at: str,
    scales: Sequence[float | int],
    metrics: Mapping[str, Metric] | Metric | None = None,
    prompts: Prompts = None,
    across_bases: bool = False,
    others: Mapping[str, Directions] | None = None,
    random: int = 0,
    seed: int = 0,
) -> "pd.DataFrame":
    """The dose curve: multiples of the directions' vector at one hook are added there, at all positions.

    at: the hook's name, such as `blocks.1.hook_resid_post`
    scales: the multiples
    metrics: by name, what is measured at the answer; one alone is called "metric"; replicates bring the trait's margin
    prompts: texts, chats or ids; replicates bring their held-out questions
    across_bases: takes directions of another base too, whose axes are unrelated
    others: controls by name, such as the shift of another trait's teacher; each is brought to the same length
    random: how many random directions are controls, as `Directions.random_like` draws them; of all ways alike where
        the directions keep no samples
    seed: of the random ones

    Returns a row a direction and scale: direction (given, the controls' names, random 1, …), at, scale, and the mean
    over prompts of each metric under its name. Raises SublimError, before anything runs, for another base's directions,
    a hook that is not there, a scale that is no number, and a control without length.
    """
    import pandas as pd

    ours = model_of(model)
    require_space("steering", model, ours, d.space, across_bases)
    (at,) = _hooks(ours, at, 1)
    vector, asked = d.at(at), asked_of(prompts, model, model=ours)
    if metrics is None or not isinstance(metrics, Mapping):
        metrics = {"metric": part_of("metric", metrics, model)}
    if odd := [scale for scale in scales if scale != scale or abs(scale) == float("inf")]:
        raise SublimError(f"steering: the scale {odd[0]} is no number to multiply with")
    tried = {GIVEN: vector}
    for name, other in (others or {}).items():
        require_space("steering", model, ours, other.space, across_bases)
        length = other.at(at).norm()
        if not length:
            raise SublimError(f"steering: the control {name} has no length at {at}")
        tried[name] = other.at(at) * (vector.norm() / length)
    drawn = d.random_like(random, covariance=d.positive is not None, seed=seed)
    tried |= {f"random {i}": one.at(at) for i, one in enumerate(drawn, 1)}
    rows = []
    for direction, own in tried.items():
        for scale in scales:
            with added(ours, scale * own, at):
                found = {name: measure(ours, asked, rule).mean().item() for name, rule in metrics.items()}
            rows.append({"direction": direction, "at": at, "scale": float(scale), **found})
    return pd.DataFrame(rows)


GIVEN = "given"
"""What a steering curve calls the directions that it is of; its controls have other names."""


def ablate(
    model: torch.nn.Module, d: Directions, at: str = "*", across_bases: bool = False
) -> AbstractContextManager[None]:
    """Inside the block directions are projected out of the stream, at all positions.

    model: the one that runs in the block
    at: names of hooks of the directions, as a glob such as `blocks.[12].hook_resid_post`; all where not given
    across_bases: takes directions of another base too, whose axes are unrelated

    Raises SublimError for a hook that there is not, for a direction without length, and for directions of another base.
    """
    if not isinstance(model, torch.nn.Module):
        raise SublimError(f"ablate acts on the model that runs, not a {type(model).__name__}: take x.load() or x.model")
    require_space("ablate", model, model, d.space, across_bases)
    chosen = [name for name in d.names if fnmatchcase(name, at)]
    if not chosen:
        raise SublimError(f"ablate: these directions have no vector at '{at}'; {meant(at, d.names)}")
    units = {name: unit_vector(d.at(name), name) for name in chosen}
    return edit(model, {name: without(unit) for name, unit in units.items()})


def _hooks(model: torch.nn.Module, at: str, count: int) -> list[str]:
    """The hooks that a name or glob means, as many as are asked for; SublimError for others."""
    if not isinstance(at, str):
        raise SublimError(f"at is a {type(at).__name__}; give a hook's name, such as blocks.1.hook_resid_post")
    found = matching(model, at)
    if len(found) != count:
        raise SublimError(f"'{at}' means {len(found)} hooks; name one, such as {found[0]}")
    return found
