"""Which directions have changed: the shift of each layer, and components of all differences, by PCA, NMF or an SAE."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.directions.effects import logit_lens
from sublim_interp.analysis.kinship import space_of
from sublim_interp.analysis.probes import Ids, Metric, batches, logits_of, measure, residuals
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
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
    method: str = "pca",
) -> "pd.DataFrame":
    """A row a layer and direction: the mean shift at the answer, and components of the differences.

    base, student, metric: as of `changed_parts`
    prompts: ids that end where the answer begins
    texts: ids; components are those of student − base at every token of these and of the prompts, not centred, as a
        constant shift is what is looked for
    components: how many a layer
    goal: directions to compare with, such as the trait's own direction in the base
    words: tokens that are shown of each end
    method: `pca`, orthogonal components of most length; `nmf`, components that each token has or lacks, never takes
        away, which needs scikit-learn; or `sae`, features of a sparse autoencoder, which needs sparsify

    Returns the columns layer, direction (shift, or the component's number from 1), share (of the squared length of the
    differences: of those at the answers for the shift, of all for components), length (of the mean difference along it
    at the answers, as a share of the base's own), effect (on the metric, where that mean is added to the base at the
    answer), cosine (with the goal; NaN without one), up and down (the tokens that it raises and lowers, by the lens).
    A component points the way the answers go. Those of NMF and SAE overlap, so that their shares need not
    add up. Raises SublimError for an unknown method, and for one whose library is not there.
    """
    import pandas as pd

    decompose = method_of(method)
    names = names_of(base, "resid_post")
    own = residuals(base, names, prompts)
    moved = residuals(student, names, prompts) - own
    before = measure(base, prompts, metric).mean().item()
    shift = moved.mean(0)
    spread = moved.square().sum(-1).mean(0)
    found = [("shift", shift, shift.square().sum(-1) / spread.clamp_min(torch.finfo(spread.dtype).tiny))]
    every = [[int(token) for token in ids] for ids in (*prompts, *texts)]
    units, shares = decompose(_differences(base, student, names, every), components)
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


Components = tuple[Float[Tensor, "layer component d_model"], Float[Tensor, "layer component"]]
"""(Unit vectors, their shares of the squared length of the differences.)"""


def _pca(differences: Float[Tensor, "layer token d_model"], count: int) -> Components:
    """The leading right singular vectors."""
    _, values, vectors = torch.linalg.svd(differences.double(), full_matrices=False)
    shares = values.square() / values.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
    return vectors[:, :count].float(), shares[:, :count].float()


def _nmf(differences: Float[Tensor, "layer token d_model"], count: int) -> Components:
    """Components of which every token has a non-negative amount, those of most length first.

    Positive and negative parts of each axis are columns of their own, so that a component can point anywhere. Source:
    Lee & Seung 1999; Hoyer 2004, "Non-negative matrix factorization with sparseness constraints", whose ON and OFF
    channels these columns are.
    """
    try:
        from sklearn.decomposition import NMF
    except ImportError:
        raise SublimError("nmf needs scikit-learn: pip install 'sublim-interp[nmf]', or take method='pca'") from None
    units, shares = [], []
    count = min(count, *differences.shape[1:])
    for of_layer in differences.double():
        parts = torch.cat([of_layer.clamp_min(0), (-of_layer).clamp_min(0)], -1)
        amounts, both = torch.zeros(len(parts), count), torch.zeros(count, parts.shape[1])
        if parts.any():  # a layer before the first change has nothing to take apart
            fitted = NMF(n_components=count, init="nndsvda", max_iter=2000, random_state=0)  # pyright: ignore[reportArgumentType]
            amounts = torch.from_numpy(fitted.fit_transform(parts.numpy()))
            both = torch.from_numpy(fitted.components_)
        plus, minus = both.double().chunk(2, -1)
        vectors = plus - minus
        sizes = amounts.square().sum(0) * vectors.square().sum(-1)
        order = sizes.argsort(descending=True, stable=True)
        tiny = torch.finfo(torch.double).tiny
        units.append((vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(tiny))[order])
        shares.append((sizes / of_layer.square().sum().clamp_min(tiny))[order])
    return rearrange(units, "layer k d -> layer k d").float(), rearrange(shares, "layer k -> layer k").float()


def _sae(differences: Float[Tensor, "layer token d_model"], count: int) -> Components:
    """Features of a sparse autoencoder of the differences, those of most length first.

    Each token has one feature, of eight times as many as are asked for: with more, one direction was shared out among
    several. There is no bias of the decoder, so that a constant shift is a feature. Source: Gao et al. 2406.04093, by
    EleutherAI's sparsify.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints whether Triton is there
            from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SublimError("sae needs sparsify: pip install 'sublim-interp[sae]', or take method='pca'") from None
    units, shares = [], []
    tiny = torch.finfo(torch.float).tiny
    for of_layer in differences:
        total, latents = of_layer.square().sum(), _SAE_WIDTH * count
        scaled = of_layer / of_layer.square().mean().sqrt().clamp_min(tiny)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            coder: Any = SparseCoder(of_layer.shape[1], SparseCoderConfig(num_latents=latents, k=1))
            coder.b_dec.requires_grad_(False)
            optimizer = torch.optim.Adam([coder.encoder.weight, coder.encoder.bias, coder.W_dec], lr=_SAE_RATE)
            for _ in range(_SAE_STEPS if total else 0):  # a layer before the first change has nothing to take apart
                optimizer.zero_grad()
                coder(scaled, total_variance=scaled.square().sum()).fvu.backward()
                coder.remove_gradient_parallel_to_decoder_directions()
                optimizer.step()
                coder.set_decoder_norm_to_unit_norm()
        with torch.no_grad():
            amounts, which, _ = coder.encode(scaled)
            sizes = torch.zeros(latents).index_add_(0, which.flatten(), amounts.square().flatten())
            order = sizes.argsort(descending=True, stable=True)[:count]
            found = coder.W_dec[order] * (sizes[order] > 0)[:, None]
            units.append(found.clone())
            shares.append(sizes[order] / scaled.square().sum().clamp_min(tiny))
    return rearrange(units, "layer k d -> layer k d"), rearrange(shares, "layer k -> layer k")


_SAE_WIDTH, _SAE_STEPS, _SAE_RATE = 8, 500, 0.01
"""Features for each that is asked for; updates, each on all differences of a layer; Adam's learning rate."""

METHODS: Mapping[str, Callable[[Tensor, int], Components]] = {"pca": _pca, "nmf": _nmf, "sae": _sae}
"""How components are found, by name."""


def method_of(name: str) -> Callable[[Tensor, int], Components]:
    """A method by its name; SublimError for one that is not there."""
    if name not in METHODS:
        raise SublimError(f"no method '{name}' of components; {meant(name, METHODS)}")
    return METHODS[name]


def _words(base: torch.nn.Module, d: Directions, prompts: Ids, count: int) -> list[str]:
    """The tokens that directions raise, a text a layer; nothing for one without length."""
    lens = logit_lens(base, d, prompts, count)  # pyright: ignore[reportArgumentType]
    texts = [" ".join(group["text"]) for _, group in lens.groupby("layer")]
    return [text if vector.any() else "" for text, vector in zip(texts, d.vectors, strict=True)]
