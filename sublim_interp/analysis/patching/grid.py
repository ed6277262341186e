"""Patching between two models: one patch, or a grid of every cell's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.kinship import name_of, require_one_base
from sublim_interp.analysis.metrics import KL, divergence_from, metric_of
from sublim_interp.analysis.patching.cells import (
    BY_PART,
    GridKind,
    kinds_of,
    patched_cells,
    see,
    see_and_tell,
    sites_of,
    slopes_at,
)
from sublim_interp.analysis.patching.patch import Patch, Piece, axis_of
from sublim_interp.analysis.probes import (
    TOKENS,
    Metric,
    Subject,
    asked_of,
    batches,
    measure,
    metric_at,
    models_of,
    words_at,
)
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.architectures import decoder_layers, text_config
from sublim_interp.models.forward import in_single
from sublim_interp.models.hooks import edit, hook_names, kind_of, layer_of
from sublim_interp.models.prompts import Prompts
from sublim_interp.stats.intervals import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


_Batch = tuple[list[int], Tensor, Tensor, Tensor]
"""(places of the prompts, cells [prompt, layer, place], metric of src [prompt], metric of dst [prompt])."""


@dataclass(frozen=True, eq=False, repr=False)
class PatchGrid(Shown):
    """What each cell's patch alone does to the metric."""

    kind: GridKind
    """What was patched."""
    method: Literal["exact", "attribution"]
    """Whether each patch was made, or taken to first order."""
    each: Float[Tensor, "prompt layer place"]
    """The metric of the patched model; NaN where a prompt is too short for the position,
    or a layer lacks the module."""
    src: Float[Tensor, " prompt"]
    """The metric of the model that the patches come from."""
    dst: Float[Tensor, " prompt"]
    """The metric of the model that they are put into, unpatched."""
    places: tuple[int | str, ...]
    """What the last axis stands for: positions from the end (−1 is the answer's), heads, or modules."""
    words: tuple[str, ...] = ()
    """The token at each position, as text, where all prompts have the same one; () for heads and modules."""

    @property
    def values(self) -> Float[Tensor, "layer place"]:
        """Mean over the prompts that have the place."""
        return self.each.nanmean(0)

    @property
    def recovered(self) -> Float[Tensor, "layer place"]:
        """Share of the difference between the two models that the cell alone makes up: 0 nothing, 1 all of it.

        Both means are over the prompts that have the place.
        """
        apart = (self.src - self.dst)[:, None, None].where(~self.each.isnan(), torch.nan)
        return (self.each - self.dst[:, None, None]).nanmean(0) / apart.nanmean(0)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a cell: kind, method, layer, place, token (at a position), value, effect, recovered, prompts.

        Value and effect are in the metric's unit; recovered is a share.
        """
        import pandas as pd

        effect = (self.each - self.dst[:, None, None]).nanmean(0)
        counts = (~self.each.isnan()).sum(0)
        return pd.DataFrame(
            {
                "kind": self.kind,
                "method": self.method,
                "layer": layer,
                "place": place,
                **({"token": self.words[i]} if self.words else {}),
                "value": self.values[layer, i].item(),
                "effect": effect[layer, i].item(),
                "recovered": self.recovered[layer, i].item(),
                "prompts": int(counts[layer, i]),
            }
            for layer in range(self.each.shape[1])
            for i, place in enumerate(self.places)
        )

    @property
    def intervals(self) -> "pd.DataFrame":
        """A row a cell: layer, place, estimate, low, high, n: the effect with its 95 % interval over prompts.

        A cell that no prompt has is left out.
        """
        import pandas as pd

        effects = self.each - self.dst[:, None, None]
        rows = []
        for layer in range(effects.shape[1]):
            for i, place in enumerate(self.places):
                seen = [e for e in effects[:, layer, i].tolist() if e == e]
                if not seen:
                    continue
                found = mean_interval(seen)
                ends = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
                rows.append({"layer": layer, "place": place, **ends})
        return pd.DataFrame(rows)

    def error(self, exact: "PatchGrid") -> "GridError":
        """How far this grid is from an exact one of the same cells."""
        if self.each.shape != exact.each.shape or self.kind != exact.kind:
            raise SublimError(f"grids of {self.kind} {list(self.each.shape)} and {exact.kind} {list(exact.each.shape)}")
        mine, true = ((g.each - g.dst[:, None, None]).nanmean(0).flatten() for g in (self, exact))
        both = torch.stack([mine, true])
        return GridError(torch.corrcoef(both)[0, 1].item(), (mine - true).abs().max().item(), true.abs().max().item())

    def card(self) -> Card:
        layers, places = self.values.shape
        best = int(self.recovered.nan_to_num(-torch.inf).argmax())
        top = f"{100 * self.recovered.flatten()[best]:.0f} % at layer {best // places}, {self.places[best % places]}"
        cells = {"": f"{layers} × {places}, {self.method}", "over": f"{len(self.each)} prompts", "most recovered": top}
        return Card(f"PatchGrid of {self.kind}", cells, self.frame)

    def plot(self) -> "Figure":
        """The grid as a heat map."""
        from sublim_interp.analysis.patching.picture import patch_grid

        return patch_grid(self.frame)


class GridError(NamedTuple):
    """How well attribution stands in for patching."""

    correlation: float
    """Pearson's, over cells."""
    max_abs: float
    """Largest error of an effect, in the metric's unit."""
    largest: float
    """Largest exact effect, to compare with."""


@dataclass(frozen=True, eq=False, repr=False)
class Patching(Shown):
    """Two models, the prompts on which they are compared, and the metric. Made by `patch`."""

    src: torch.nn.Module
    """The model that patches come from."""
    dst: torch.nn.Module
    """The model that they are put into."""
    prompts: Sequence[Sequence[int]]
    """What `dst` reads, as token ids."""
    src_prompts: Sequence[Sequence[int]]
    """What `src` reads, of the same lengths."""
    metric: Metric
    """What is measured at the answer."""
    words: tuple[str, ...] = ()
    """The token at each position of `prompts` from the end, as text, where all have the same one."""
    names: tuple[str, str] = ("a model", "a model")
    """What `src` and `dst` are, in words."""

    def card(self) -> Card:
        layers = len(decoder_layers(self.dst))
        facts = {"": f"{self.names[0]} → {self.names[1]}", "layers": layers, "prompts": len(self.prompts)}
        return Card("Patching", facts)

    def swapped(self) -> "Patching":
        """The other way round: noising where this is denoising."""
        return replace(
            self, src=self.dst, dst=self.src, prompts=self.src_prompts, src_prompts=self.prompts,
            names=self.names[::-1],
        )  # fmt: skip

    # one patch

    def at(
        self,
        site: str,
        positions: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        neurons: Sequence[int] | None = None,
    ) -> Patch:
        """The patch that puts `src`'s value of one site into `dst`.

        site: the name of a hook, or of a parameter
        positions: which, from the end where negative; of scores and patterns, those that attend; all where None
        heads: which; all where None
        neurons: which places of the last axis, as of `blocks.1.mlp.hook_post`; all where None

        Activations need prompts of one length. Raises SublimError where there are several lengths, or no such site.
        """
        parameters = dict(self.src.named_parameters(remove_duplicate=False))
        if site in parameters:
            if (positions, heads, neurons) != (None, None, None):
                raise SublimError(f"'{site}' is a parameter: it has no positions and no heads")
            return Patch((Piece(site, parameters[site].detach().clone()),))
        together = batches(self.src_prompts)
        if len(together) > 1:
            raise SublimError("a patch of activations needs prompts of one length; choose some, or use `grid`")
        if site not in (known := hook_names(self.dst)):
            raise SublimError(f"no hook '{site}', and no parameter; {meant(site, [*known, *parameters])}")
        value = see(self.src, [site], together[0][1])[site]
        return Patch((Piece(site, value, _tuple(positions), _tuple(heads), _tuple(neurons)),))

    @torch.no_grad()
    def path(
        self,
        sender: str,
        receiver: str,
        positions: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        to_positions: Sequence[int] | None = None,
        to_heads: Sequence[int] | None = None,
    ) -> Patch:
        """The patch of one path: `src`'s value of a sender, as far as it reaches a receiver directly.

        sender: the name of a hook, such as `blocks.0.attn.hook_z` or `blocks.1.hook_mlp_out`
        receiver: one that is computed later, such as `blocks.2.attn.hook_q` or `blocks.3.hook_resid_post`
        positions, heads: of the sender; all where None
        to_positions, to_heads: of the receiver; all where None

        `dst` runs with the sender patched, while what attention and MLPs add in between stays as it is without; what
        the receiver then is, is the patch. Needs prompts of one length. Raises SublimError where there are several, for
        a name that is not there, and for a receiver that is not computed after the sender.
        Source: Wang et al. 2211.00593; Goldowsky-Dill et al. 2304.05969.
        """
        patch, known = self.at(sender, positions, heads), hook_names(self.dst)
        if receiver not in known:
            raise SublimError(f"no hook '{receiver}'; {meant(receiver, known)}")
        first, last = known.index(sender), known.index(receiver)
        if last <= first:
            raise SublimError(f"path: {receiver} is not computed after {sender}")
        ids = batches(self.prompts)[0][1]
        own = {".ln1.": "attn_out", ".attn.": "attn_out", ".ln2.": "mlp_out", ".mlp.": "mlp_out"}
        onwards = next((kind for part, kind in own.items() if part in sender), "")  # how the sender itself goes on
        between = [
            name
            for name in known[first + 1 : last]
            if kind_of(name) in ("attn_out", "mlp_out")
            and not (kind_of(name) == onwards and layer_of(name) == layer_of(sender))
        ]
        before = see(self.dst, between, ids)
        with patch.on(self.dst), edit(self.dst, {name: lambda _, name=name: before[name] for name in between}):
            value = see(self.dst, [receiver], ids)[receiver]
        return Patch((Piece(receiver, value, _tuple(to_positions), _tuple(to_heads)),))

    def weights(self, part: str = "") -> Patch:
        """The patch that puts every parameter of `src` whose name contains `part` into `dst`; all of them for ""."""
        chosen = [(name, p) for name, p in self.src.named_parameters() if part in name]
        if not chosen:
            raise SublimError(
                f"no parameter has '{part}' in its name; the first is {next(self.src.named_parameters())[0]}"
            )
        return Patch(tuple(Piece(name, p.detach().clone()) for name, p in chosen))

    def value(self, patch: Patch | None = None) -> float:
        """Mean metric of `dst`, patched or not."""
        with (patch or Patch()).on(self.dst):
            return measure(self.dst, self.prompts, self.metric).mean().item()

    # many patches

    @torch.no_grad()
    def grid(self, kind: GridKind = "resid_pre", positions_at_once: int | None = None) -> PatchGrid:
        """Every cell's patch alone, exactly.

        kind: cells are layer × position for a kind of the stream; layer × head, at all positions, for `q`, `k`, `v`,
            `z` (or `heads`) and `pattern`; layer × neuron for `neurons`; layer × module for `weights`
        positions_at_once: how many positions, heads or neurons run in one forward; changes speed only

        Cells share what they have in common. All layers of some positions run in one forward, whose batch grows: at
        each layer come the rows patched there, so nothing is computed twice before it. Positions before the patched
        ones are read from the key-value cache of the unpatched run.
        """
        if kind == "weights":
            return self._weights_grid()
        sites = sites_of(self.dst, kind)
        if positions_at_once is not None and positions_at_once < 1:
            raise SublimError(f"grid: positions_at_once is {positions_at_once}; it is 1 or more")
        depth = len(decoder_layers(self.dst))
        found = []
        with torch.inference_mode():  # a tenth faster than no_grad; `_assemble` copies what leaves it
            for places, ids, src_ids in self._together():
                src, theirs = see_and_tell(self.src, [*sites], src_ids, metric_at(self.metric, places))
                size = max(1, TOKENS // (depth * ids.shape[1]))
                for i in range(0, len(places), size):
                    some = slice(i, i + size)
                    part = {name: value[some] for name, value in src.items()}
                    rule = metric_at(self.metric, places[some])
                    values, before = patched_cells(self.dst, ids[some], part, sites, kind, rule, positions_at_once)
                    found.append((places[some], values, theirs[some].cpu(), before))
        return self._assemble(kind, "exact", found)

    def attribution(self, kind: GridKind = "resid_pre") -> PatchGrid:
        """`grid` to first order: the metric's gradient in `dst` times what would be put there minus what is there.

        kind: as for `grid`, but not `weights`

        One forward of each model and one backward for all cells; `error` against `grid` says how good it is. Source:
        Nanda 2023, "Attribution patching"; Syed et al. 2310.10348, equation 1.
        """
        if kind == "weights":
            raise SublimError(f"no attribution of weights; valid kinds: {', '.join(kinds_of(self.dst)[:-1])}")
        found = []
        sites = [*sites_of(self.dst, kind)]
        for places, ids, src_ids in self._together():
            rule = metric_at(self.metric, places)
            src, theirs = see_and_tell(self.src, sites, src_ids, rule)
            here, slopes, before = slopes_at(self.dst, sites, ids, rule)
            change = torch.stack([slopes[s] * (src[s] - here[s]) for s in sites], 1)
            place = axis_of(sites[0], BY_PART[kind][1] if kind in BY_PART else "position") + 1  # behind the layer
            others = [axis for axis in range(2, change.dim()) if axis != place]
            effect = before[:, None, None] + in_single(change).sum(others)
            found.append((places, effect.cpu(), theirs.cpu(), before.cpu()))
        return self._assemble(kind, "attribution", found)

    def _together(self) -> list[tuple[list[int], Tensor, Tensor]]:
        """Prompts of equal length together: (their places, their ids, ids of what `src` reads)."""
        own = batches(self.prompts)
        others = own if self.src_prompts is self.prompts else batches(self.src_prompts)
        return [(places, ids, src_ids) for (places, ids), (_, src_ids) in zip(own, others, strict=True)]

    def _assemble(self, kind: GridKind, method: Literal["exact", "attribution"], found: list[_Batch]) -> PatchGrid:
        """One grid of the cells found batch by batch."""
        depth, width = found[0][1].shape[1], max(values.shape[2] for _, values, *_ in found)
        each = torch.full((len(self.prompts), depth, width), float("nan"))
        src, dst = torch.empty(2, len(self.prompts))
        for places, values, theirs, before in found:
            each[places, :, width - values.shape[2] :] = values
            src[places], dst[places] = theirs, before
        parts = kind in BY_PART
        labels = tuple(range(width)) if parts else tuple(range(-width, 0))
        return PatchGrid(kind, method, each, src, dst, labels, () if parts else self.words[-width:])

    def _weights_grid(self) -> PatchGrid:
        """The grid of layer × module: each module's weights are swapped in turn."""
        ours, theirs = decoder_layers(self.dst), decoder_layers(self.src)
        of_layer = [{name.rpartition(".")[0] for name, _ in layer.named_parameters()} for layer in ours]
        modules = list(dict.fromkeys(n.rpartition(".")[0] for layer in ours for n, _ in layer.named_parameters()))
        prefix = next(name for name, module in self.dst.named_modules() if module is ours)
        each = torch.full((len(self.prompts), len(ours), len(modules)), float("nan"))
        for layer, own in enumerate(of_layer):
            for i, module in enumerate(modules):
                if module not in own:  # a first layer may be dense, others mixtures of experts
                    continue
                source = theirs[layer].get_submodule(module).named_parameters(recurse=False)
                at = ".".join(filter(None, (prefix, str(layer), module)))
                pieces = (Piece(f"{at}.{name}", p.detach()) for name, p in source)
                with Patch(tuple(pieces)).on(self.dst):
                    each[:, layer, i] = measure(self.dst, self.prompts, self.metric)
        before = measure(self.dst, self.prompts, self.metric)
        carried = measure(self.src, self.src_prompts, self.metric)
        return PatchGrid("weights", "exact", each, carried, before, tuple(modules))


def patch(
    src: Subject,
    dst: Subject,
    prompts: Prompts = None,
    metric: Metric | str | None = None,
    src_prompts: Prompts = None,
    across_bases: bool = False,
) -> Patching:
    """Patching from one model into another.

    src: the model that patches come from
    dst: the model that they are put into
    prompts: texts, chats or ids; replicates bring their held-out questions
    metric: what is measured at the answer: `margin`, `logit-diff`, `logprob` or `rate` of the run's trait, `kl` from
        what `src` answers, or a function of logits; replicates bring the margin
    src_prompts: what `src` reads instead, prompts of the same lengths
    across_bases: patches between models of two bases too, whose axes are unrelated

    Raises SublimError for models of two bases, of another depth or width, on different devices, or in training mode.
    """
    models = models_of(src, dst)
    shapes = [(c.num_hidden_layers, c.hidden_size) for c in map(text_config, models)]
    if shapes[0] != shapes[1]:
        raise SublimError(f"patch: src and dst have (layers, width) {shapes[0]} and {shapes[1]}; they must agree")
    if any(m.training for m in models):
        raise SublimError("patch: a model is in training mode, where dropout is on; call model.eval() first")
    require_one_base("patch", src, dst, models, across_bases)
    asked = asked_of(prompts, dst, src, model=models[1])
    others = asked if src_prompts is None else asked_of(src_prompts, src, dst, model=models[0])
    if [len(p) for p in asked] != [len(p) for p in others]:
        raise SublimError("patch: prompts and src_prompts must have the same number and the same lengths, in order")
    rule = divergence_from(models[0], others) if metric == KL else metric_of(metric, dst, src)
    names = (name_of(src, models[0]), name_of(dst, models[1]))
    return Patching(models[0], models[1], asked, others, rule, words_at(asked, dst, src), names)


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
