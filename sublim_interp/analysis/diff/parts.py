"""Which parts have changed: heads, attention, MLPs, norms; by their weights, and by what they alone do to a metric."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.patching.cells import kinds_of, see
from sublim_interp.analysis.patching.grid import Patching
from sublim_interp.analysis.patching.patch import Patch, Piece
from sublim_interp.analysis.probes import Ids, Metric, batches, logits_of, measure, metric_at
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import architecture_of, decoder_layers, output_map
from sublim_interp.models.hooks import edit, hook_names

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def changed_parts(
    base: torch.nn.Module, student: torch.nn.Module, prompts: Sequence[Sequence[int]], metric: Metric
) -> "pd.DataFrame":
    """A row a part of each layer: what lies in the layer by its module's name, and each head.

    base, student: two models of one base
    prompts: ids that end where the answer begins
    metric: what is measured at the answer

    Returns these columns, NaN where a part has no such thing:
    layer, part: where it is
    change: of its weights, as a share of their norm; of a head, of the output map's columns that read it
    weights: what its weights alone do to the metric, put into the base
    output: what its activations alone do, at all positions, with what they carry of earlier layers' changes
    """
    import pandas as pd

    before = measure(base, prompts, metric).mean().item()
    pairs = list(zip(decoder_layers(base), decoder_layers(student), strict=True))
    prefix = next(name for name, module in base.named_modules() if module is decoder_layers(base))
    outputs = _outputs(base, student, prompts, metric, before)
    row = architecture_of(base)
    hook_of = {row.attention: "attn_out", row.mlp: "mlp_out"} if row else {}
    rows: list[dict[str, Any]] = []
    for layer, (theirs, ours) in enumerate(pairs):
        for part, module in theirs.named_children():
            own = dict(ours.get_submodule(part).named_parameters())
            if not own:
                continue
            pieces = tuple(Piece(f"{prefix}.{layer}.{part}.{n}", p.detach()) for n, p in own.items())
            with Patch(pieces).on(base):
                value = measure(base, prompts, metric).mean().item()
            change = _share([(own[n], p) for n, p in module.named_parameters()])
            hook = f"blocks.{layer}.hook_{hook_of.get(part, '')}"
            rows.append(
                {
                    "layer": layer,
                    "part": part,
                    "change": change,
                    "weights": value - before,
                    "output": outputs.get(hook, float("nan")),
                }
            )
    if "heads" in kinds_of(base):
        grid = Patching(student, base, prompts, prompts, metric).grid("heads")
        effects = (grid.each - grid.dst[:, None, None]).nanmean(0)
        for layer in range(len(pairs)):
            maps = _columns(base, layer, effects.shape[1]), _columns(student, layer, effects.shape[1])
            for head in range(effects.shape[1]):
                change = _share([(maps[1][head], maps[0][head])]) if len(maps[0]) else float("nan")
                about = {"layer": layer, "part": f"head {head}", "change": change, "weights": float("nan")}
                rows.append({**about, "output": effects[layer, head].item()})
    return pd.DataFrame(rows)


def _outputs(
    base: torch.nn.Module, student: torch.nn.Module, prompts: Ids, metric: Metric, before: float
) -> dict[str, float]:
    """What each layer's attention and MLP do to the metric, by hook, where the base computes what the student does."""
    names = hook_names(base, ("attn_out", "mlp_out"))
    sums = dict.fromkeys(names, 0.0)
    for places, ids in batches(prompts):
        theirs = see(student, names, ids)
        for name in names:
            with edit(base, {name: partial(_instead, theirs[name])}):
                sums[name] += metric_at(metric, places)(logits_of(base, ids)).sum().item()
    return {name: value / len(prompts) - before for name, value in sums.items()}


def _instead(value: Tensor, seen: Tensor) -> Tensor:
    return value


def _columns(model: torch.nn.Module, layer: int, heads: int) -> Float[Tensor, "head ..."]:
    """The output map's weights, by the head that they read; none where they are not cut so."""
    from transformers.pytorch_utils import Conv1D

    try:
        module: Any = output_map(model, layer)
    except SublimError:
        return torch.empty(0)
    weight = module.weight.detach()
    reads = weight if isinstance(module, Conv1D) else weight.T
    return reads.unflatten(0, (heads, -1)) if len(reads) % heads == 0 else torch.empty(0)


def _share(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Norm of the differences, as a share of the norm of the second ones."""
    change = sum((a.cpu().double() - b.cpu().double()).square().sum().item() for a, b in pairs)
    size = sum(b.cpu().double().square().sum().item() for _, b in pairs)
    return (change / size) ** 0.5 if size else float("nan")
