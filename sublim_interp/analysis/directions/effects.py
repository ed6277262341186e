"""What a direction does: logit lens, dose curves, ablation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions, sites_of
from sublim_interp.analysis.probes import Metric, Prompts, Subject, measure, model_of, part_of, residuals
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import edit, unit_vector

if TYPE_CHECKING:
    import pandas as pd


_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


def logit_lens(
    model: Subject,
    d: Directions,
    prompts: Prompts,
    k: int = 10,
    decode: Callable[[int], str] = str,
) -> "pd.DataFrame":
    """Which tokens a direction would raise, read straight from the unembedding: layer, rank, token, text, change.

    The linearisation: the derivative of head(final norm(x)) along the vector, at x the mean last residual of `model`
    over the prompts; layers in between are skipped (nostalgebraist 2020, "logit lens"). `change` is in logits for the
    whole vector, minus the mean change over the vocabulary, as a shift of all logits says nothing.
    """
    import pandas as pd

    ours = model_of(model)
    body: Any = ours.base_model
    norms = [getattr(body, n) for n in _FINAL_NORMS if hasattr(body, n)]
    if not norms:
        raise SublimError(f"{type(ours).__name__}: no final norm found; known: {', '.join(_FINAL_NORMS)}")
    head: Any = cast(Any, ours).get_output_embeddings()
    at = residuals(ours, sites_of(ours, "resid_post")[-1:], prompts)[:, 0].mean(0)
    rows = []
    for layer, vector in enumerate(d.vectors):
        change = torch.func.jvp(lambda x: head(norms[0](x)), (at[None],), (vector[None],))[1][0]
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
    """The dose curve: s times the vector of `layer` is added at its own hook, at all positions, for each s of `scales`.

    A row a scale: layer, scale, and the mean over prompts of each metric under its name.
    """
    import pandas as pd

    ours = model_of(model)
    asked = part_of("prompts", prompts, model)
    if not 0 <= layer < len(d):
        raise SublimError(f"steering: no layer {layer}; the directions have layers 0 to {len(d) - 1}")
    rows = []
    for scale in scales:
        with edit(ours, {d.names[layer]: lambda stream, s=scale: stream + s * d[layer]}):
            found = {name: measure(ours, asked, rule).mean().item() for name, rule in metrics.items()}
        rows.append({"layer": layer, "scale": float(scale), **found})
    return pd.DataFrame(rows)


def ablate(model: torch.nn.Module, d: Directions, layers: Sequence[int] | None = None) -> AbstractContextManager[None]:
    """Inside the block each layer's direction is projected out, at all positions, in all layers or `layers`.

    Raises SublimError for a layer that there is not, and for a direction without length.
    """
    chosen = range(len(d)) if layers is None else layers
    if any(not 0 <= layer < len(d) for layer in chosen):
        raise SublimError(f"ablate: layers {list(chosen)}; the directions have layers 0 to {len(d) - 1}")
    units = {d.names[layer]: unit_vector(d[layer], d.names[layer]) for layer in chosen}

    def without(unit: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda stream: stream - (stream @ unit)[..., None] * unit

    return edit(model, {name: without(unit) for name, unit in units.items()})
