"""What a direction does to a model: logit lens, dose curve, ablation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from einops import rearrange

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.probes import Metric, Prompts, Subject, measure, model_of, part_of, residuals
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import edit, lens_of, names_of, unit_vector, without

if TYPE_CHECKING:
    import pandas as pd


def logit_lens(
    model: Subject,
    d: Directions,
    prompts: Prompts,
    k: int = 10,
    decode: Callable[[int], str] = str,
) -> "pd.DataFrame":
    """Which tokens a direction would raise, read straight from the unembedding.

    prompts: token ids; their mean last residual is where head(final norm(x)) is linearised
    k: how many tokens a layer
    decode: gives the text of a token id

    Returns a row a layer and rank: layer, rank, token, text, change. The change is the derivative along the whole
    vector, in logits, minus its mean over the vocabulary, as a shift of all logits says nothing. Layers in between are
    skipped. Source: nostalgebraist 2020, "logit lens".
    """
    import pandas as pd

    ours = model_of(model)
    norm, head = lens_of(ours)
    like = next(ours.parameters())
    at = rearrange(residuals(ours, names_of(ours, "resid_post")[-1:], prompts), "prompt 1 d_model -> prompt d_model")
    at = at.mean(0).to(like)
    rows = []
    for layer, vector in enumerate(d.vectors.to(like)):
        change = torch.func.jvp(lambda x: head(norm(x)), (at[None],), (vector[None],))[1][0]
        change = (change - change.mean()).detach()
        top = change.topk(k)
        for rank, (token, value) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
            rows.append({"layer": layer, "rank": rank, "token": token, "text": decode(token), "change": value})
    return pd.DataFrame(rows)


def steering(
    model: Subject,
    d: Directions,
    layer: int,
    scales: Sequence[float | int],
    metrics: Mapping[str, Metric],
    prompts: Prompts | None = None,
) -> "pd.DataFrame":
    """The dose curve: multiples of one layer's vector are added at its own hook, at all positions.

    layer: whose vector
    scales: the multiples
    metrics: by name, what is measured at the answer
    prompts: replicates bring their held-out questions

    Returns a row a scale: layer, scale, and the mean over prompts of each metric under its name.
    """
    import pandas as pd

    ours = model_of(model)
    asked = part_of("prompts", prompts, model)
    if not 0 <= layer < len(d):
        raise SublimError(f"steering: no layer {layer}; the directions have layers 0 to {len(d) - 1}")
    rows = []
    for scale in scales:
        with edit(ours, {d.names[layer]: lambda stream, s=scale: stream + s * d[layer].to(stream)}):
            found = {name: measure(ours, asked, rule).mean().item() for name, rule in metrics.items()}
        rows.append({"layer": layer, "scale": float(scale), **found})
    return pd.DataFrame(rows)


def ablate(model: torch.nn.Module, d: Directions, layers: Sequence[int] | None = None) -> AbstractContextManager[None]:
    """Inside the block each layer's direction is projected out of the stream, at all positions.

    layers: which; all where None

    Raises SublimError for a layer that there is not, and for a direction without length.
    """
    chosen = range(len(d)) if layers is None else layers
    if any(not 0 <= layer < len(d) for layer in chosen):
        raise SublimError(f"ablate: layers {list(chosen)}; the directions have layers 0 to {len(d) - 1}")
    units = {d.names[layer]: unit_vector(d[layer], d.names[layer]) for layer in chosen}
    return edit(model, {name: without(unit) for name, unit in units.items()})
