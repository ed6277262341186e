"""Which directions have changed: the shift of each layer, and the leading components of all differences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.directions.effects import logit_lens
from sublim_interp.analysis.kinship import space_of
from sublim_interp.analysis.probes import Ids, Metric, batches, logits_of, measure, residuals
from sublim_interp.models.hooks import added, capture, names_of

if TYPE_CHECKING:
    import pandas as pd

TOKENS = 2048
"""Differences at so many tokens at most, evenly spaced, are decomposed."""


@torch.no_grad()
def changed_directions(
    base: torch.nn.Module,
    student: torch.nn.Module,
    prompts: Ids,
    metric: Metric,
    texts: Ids,
    components: int = 3,
    goal: Directions | None = None,
    words: int = 4,
) -> "pd.DataFrame":
    """A row a layer and direction: the mean shift at the answer, and principal components of the differences.

    base, student, metric: as of `changed_parts`
    prompts: ids that end where the answer begins
    texts: ids; components are those of student − base at every token of these and of the prompts, not centred, as a
        constant shift is what is looked for
    components: how many a layer
    goal: directions to compare with, such as the trait's own direction in the base
    words: tokens that are shown of each end

    Returns the columns layer, direction (shift, or the component's number from 1), share (of the squared length of the
    differences: of those at the answers for the shift, of all for components), length (of the mean difference along it
    at the answers, as a share of the base's own), effect (on the metric, where that mean is added to the base at the
    answer), cosine (with the goal; NaN without one), up and down (the tokens that it raises and lowers, by the lens).
    A component points the way the answers go.
    """
    import pandas as pd

    names = names_of(base, "resid_post")
    own = residuals(base, names, prompts)
    moved = residuals(student, names, prompts) - own
    before = measure(base, prompts, metric).mean().item()
    shift = moved.mean(0)
    spread = moved.square().sum(-1).mean(0)
    found = [("shift", shift, shift.square().sum(-1) / spread.clamp_min(torch.finfo(spread.dtype).tiny))]
    every = [[int(token) for token in ids] for ids in (*prompts, *texts)]
    units, shares = _components(_differences(base, student, names, every), components)
    for k in range(units.shape[1]):
        along = (shift * units[:, k]).sum(-1, keepdim=True)  # its sign is the answers' own
        found.append((str(k + 1), along * units[:, k], shares[:, k]))
    sizes = own.norm(dim=-1).mean(0)
    rows: list[dict[str, Any]] = []
    for direction, vectors, share in found:
        d = Directions(f"{direction} of a difference", tuple(names), vectors, space_of(base))
        ends = [_words(base, way, prompts, words) for way in (d, -d)]
        cosines = d.cosine(goal)["cosine"].to_list() if goal is not None else [float("nan")] * len(d)
        for layer, name in enumerate(names):
            with added(base, vectors[layer], name, [-1]):
                value = measure(base, prompts, metric).mean().item()
            rows.append(
                {
                    "layer": layer,
                    "direction": direction,
                    "share": share[layer].item(),
                    "length": (vectors[layer].norm() / sizes[layer]).item(),
                    "effect": value - before,
                    "cosine": cosines[layer],
                    "up": ends[0][layer],
                    "down": ends[1][layer],
                }
            )
    return pd.DataFrame(rows).sort_values("layer", kind="stable", ignore_index=True)


def _differences(
    base: torch.nn.Module, student: torch.nn.Module, names: Sequence[str], texts: Ids
) -> Float[Tensor, "layer token d_model"]:
    """student − base at every token."""
    pieces: list[list[Tensor]] = [[] for _ in names]
    for _, ids in batches(texts):
        both = []
        for model in (base, student):
            with capture(model, names) as seen:
                logits_of(model, ids)
            both.append([seen[name] for name in names])
        for own, a, b in zip(pieces, *both, strict=True):
            own.append((b - a).flatten(0, 1).float().cpu())
    joined = rearrange([torch.cat(own) for own in pieces], "layer token d_model -> layer token d_model")
    return joined[:, :: -(-joined.shape[1] // TOKENS)]


def _components(
    differences: Float[Tensor, "layer token d_model"], count: int
) -> tuple[Float[Tensor, "layer component d_model"], Float[Tensor, "layer component"]]:
    """The leading right singular vectors, and their shares of the squared length."""
    _, values, vectors = torch.linalg.svd(differences.double(), full_matrices=False)
    shares = values.square() / values.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
    return vectors[:, :count].float(), shares[:, :count].float()


def _words(base: torch.nn.Module, d: Directions, prompts: Ids, count: int) -> list[str]:
    """The tokens that directions raise, a text a layer; nothing for one without length."""
    lens = logit_lens(base, d, prompts, count)  # pyright: ignore[reportArgumentType]
    texts = [" ".join(group["text"]) for _, group in lens.groupby("layer")]
    return [text if vector.any() else "" for text, vector in zip(texts, d.vectors, strict=True)]
