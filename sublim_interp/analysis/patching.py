"""Activation and weight patching between two models: a patch as a value, and grids of many patches at once.

Put what one model computes (or is) into another, and see what becomes of its answer. With the trait's carrier as `src`
and a model without it as `dst` this is denoising: where does the trait come in? With the roles swapped it is noising:
where does it break? (Terms as in Zhang & Nanda 2309.16042, section 2.) No directions here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.analysis.probes import (
    TOKENS,
    Metric,
    Prompts,
    Subject,
    batches,
    frozen,
    logits_of,
    measure,
    model_of,
    part_of,
)
from sublim_interp.errors import SublimError
from sublim_interp.hooks import attached, capture, decoder_layers, edit, hook_names
from sublim_interp.trace import Trace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Stream = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
GridKind = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "weights"]

_Batch = tuple[list[int], Tensor, Tensor, Tensor]
_OUTPUT_MAPS = ("self_attn.o_proj", "attn.c_proj", "attention.dense")
"""Within a decoder layer: the linear map that reads the heads' outputs side by side."""


# --- a patch is a value -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Piece:
    """One place, and what is put there."""

    site: str
    """A hook's name, `blocks.{l}.attn.hook_z` for heads, a parameter's name, or, for what an optimiser keeps of it,
    `exp_avg/{parameter}`, `exp_avg_sq/{parameter}`, `step/{parameter}`, `momentum_buffer/{parameter}`."""
    value: Tensor
    """The other model's: [prompt, position, d_model], for heads [prompt, position, head, d_head]; the parameter's shape
    for a parameter and its moments."""
    positions: tuple[int, ...] | None = None
    """Which positions, counted from the end where negative; None means all."""
    heads: tuple[int, ...] | None = None
    """Which heads; None means all."""

    def __repr__(self) -> str:
        where = "" if self.positions is None else f" at {', '.join(map(str, self.positions))}"
        which = "" if self.heads is None else f" heads {', '.join(map(str, self.heads))}"
        return f"<{self.site}{which}{where}>"

    def into(self, stream: Tensor) -> Tensor:
        """A copy of `stream` with the value in its place."""
        if stream.shape != self.value.shape:
            raise SublimError(
                f"patch of {self.site}: made for {list(self.value.shape)}, but the model runs on {list(stream.shape)}; "
                "run the prompts that the patch was made from"
            )
        new = stream.clone()
        at = slice(None) if self.positions is None else list(self.positions)
        if self.heads is None:
            new[:, at] = self.value[:, at]
        else:
            for head in self.heads:
                new[:, at, head] = self.value[:, at, head]
        return new


@dataclass(frozen=True, eq=False)
class Patch:
    """Pieces of one model for another. `a + b` has both, b's coming later; `for piece in patch` lists them."""

    pieces: tuple[Piece, ...] = ()

    def __add__(self, other: "Patch") -> "Patch":
        return Patch(self.pieces + other.pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    @contextmanager
    def on(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """Inside the block `model` runs patched; afterwards it is as it was, bit for bit.

        An optimiser is needed by moments alone: a training inside the block goes on from them, and afterwards what the
        optimiser keeps of these parameters is what it kept before. So `train(…, intervene=patch.on)` starts from a
        patch. Raises SublimError for a site that the model or the optimiser lacks, a shape that differs, or a site that
        no forward reached.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        at_hooks: dict[str, list[Piece]] = {}
        with ExitStack() as held:
            held.enter_context(_state_swapped(optimizer, parameters, [p for p in self.pieces if "/" in p.site]))
            for piece in self.pieces:
                if "/" in piece.site:
                    continue
                if piece.site in parameters:
                    held.enter_context(_swapped(parameters[piece.site], piece))
                else:
                    at_hooks.setdefault(piece.site, []).append(piece)

            edits = {}
            for site, pieces in at_hooks.items():

                def put(stream: Tensor, pieces: Sequence[Piece] = pieces) -> Tensor:
                    for piece in pieces:
                        stream = piece.into(stream)
                    return stream

                if site.endswith("hook_z"):
                    held.enter_context(_heads(model, {_layer_of(model, site): put}))
                else:
                    edits[site] = put
            held.enter_context(edit(model, edits))
            yield


@contextmanager
def _swapped(parameter: Tensor, piece: Piece) -> Iterator[None]:
    if parameter.shape != piece.value.shape:
        raise SublimError(
            f"patch of {piece.site}: shape {list(piece.value.shape)}, the model's {list(parameter.shape)}"
        )
    before = parameter.detach().clone()
    parameter.data.copy_(piece.value)
    try:
        yield
    finally:
        parameter.data.copy_(before)


# --- moments ----------------------------------------------------------------------------------------------------------

_STATES = {torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}
"""What an optimiser keeps of each parameter; AdamW is an Adam."""


def moments(trace: Trace, step: int = -1, part: str = "") -> Patch:
    """The moments of a recorded training after `step` updates, of the parameters whose name contains `part`.

    For Adam its count of updates comes with them, or the bias correction would be that of a first update. A trace keeps
    moments at few steps; −1 is the last of them. Raises SublimError where it has none, or none of that step or part.
    """
    starts = tuple(f"full/{state}/" for states in _STATES.values() for state in states)
    names = [name for name in trace.names("full/*") if name.startswith(starts) and part in name.split("/", 2)[2]]
    if not names:
        of = f" of a parameter with '{part}' in its name" if part else ""
        raise SublimError(f"trace {trace.path} holds no moments{of}; it keeps them of Adam and SGD, within its budget")
    updates = trace.steps(names[0])[step] if step < 0 else step
    pieces = [Piece(name.removeprefix("full/"), trace.read(name, step)) for name in names]
    adam = [p.site.partition("/")[2] for p in pieces if p.site.startswith("exp_avg/")]
    return Patch((*pieces, *(Piece(f"step/{name}", torch.tensor(float(updates))) for name in adam)))


def moments_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Patch:
    """The moments that an optimiser keeps now. Raises SublimError where it keeps none."""
    pieces = [
        Piece(f"{state}/{name}", value.detach().clone())
        for name, p in model.named_parameters()
        for state, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    ]
    if not pieces:
        raise SublimError(f"{type(optimizer).__name__} keeps no moments of this model's parameters")
    return Patch(tuple(pieces))


@contextmanager
def _state_swapped(
    optimizer: torch.optim.Optimizer | None, parameters: dict[str, torch.nn.Parameter], pieces: Sequence[Piece]
) -> Iterator[None]:
    """Inside the block the optimiser keeps other moments of some parameters."""
    if not pieces:
        yield
        return
    if optimizer is None:
        raise SublimError(f"{pieces[0].site} is an optimiser's: give it too, patch.on(model, optimizer)")
    kept = next((states for kind, states in _STATES.items() if isinstance(optimizer, kind)), ())
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    after: dict[Tensor, dict[str, Any]] = {}
    for piece in pieces:
        state, _, name = piece.site.partition("/")
        p = parameters.get(name)
        if state not in kept:
            known = ", ".join(kept) or "nothing that is known"
            raise SublimError(f"patch of {piece.site}: {type(optimizer).__name__} keeps {known}")
        if p is None or id(p) not in owned:
            raise SublimError(f"patch of {piece.site}: the optimiser has no such parameter")
        shape = [] if state == "step" else list(p.shape)
        if list(piece.value.shape) != shape:
            raise SublimError(f"patch of {piece.site}: shape {list(piece.value.shape)}, the optimiser's {shape}")
        after.setdefault(p, _copied(optimizer.state.get(p, {})))[state] = piece.value.detach().clone()
    if any(len(own) < len(kept) for own in after.values()):
        raise SublimError(f"the optimiser has made no update: a patch of it needs {', '.join(kept)} of each parameter")
    before = {p: _copied(optimizer.state[p]) for p in after if p in optimizer.state}
    optimizer.state.update(after)
    try:
        yield
    finally:
        for p in after:
            del optimizer.state[p]
        optimizer.state.update(before)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


# --- heads ------------------------------------------------------------------------------------------------------------


def _layer_of(model: torch.nn.Module, site: str) -> int:
    depth = len(decoder_layers(model))
    known = [f"blocks.{layer}.attn.hook_z" for layer in range(depth)]
    if site not in known:
        raise SublimError(f"no site '{site}'; the heads' are blocks.{{l}}.attn.hook_z for layers 0 to {depth - 1}")
    return known.index(site)


def _output_map(layer: torch.nn.Module) -> torch.nn.Module:
    modules = dict(layer.named_modules())
    for name in _OUTPUT_MAPS:
        if name in modules:
            return modules[name]
    raise SublimError(f"{type(layer).__name__}: no attention output map found; known: {', '.join(_OUTPUT_MAPS)}")


@contextmanager
def _heads(model: torch.nn.Module, visits: dict[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Shows the heads' outputs of layers, [batch, position, head, d_head]; what a visitor returns replaces them."""
    config: Any = model.config
    count = config.get_text_config().num_attention_heads
    with ExitStack() as held:
        for layer, visit in visits.items():

            def show(_module: torch.nn.Module, args: tuple, visit: Any = visit) -> tuple | None:
                new = visit(args[0].unflatten(-1, (count, -1)))
                return None if new is None else (new.flatten(-2), *args[1:])

            held.callback(_output_map(decoder_layers(model)[layer]).register_forward_pre_hook(show).remove)
        yield


# --- between two models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """What each cell's patch alone does to the metric."""

    kind: GridKind
    method: Literal["exact", "attribution"]
    each: Float[Tensor, "prompt layer place"]
    """The metric of the patched model; NaN where a prompt is too short for the position."""
    src: Float[Tensor, " prompt"]
    """The metric of the model that the patches come from."""
    dst: Float[Tensor, " prompt"]
    """The metric of the model that they are put into, unpatched."""
    places: tuple[int | str, ...]
    """What the last axis stands for: positions from the end (−1 is the answer's), heads, or modules."""

    @property
    def values(self) -> Float[Tensor, "layer place"]:
        """Mean over the prompts that have the place."""
        return self.each.nanmean(0)

    @property
    def recovered(self) -> Float[Tensor, "layer place"]:
        """Share of the difference between the two models that the cell alone makes up: 0 nothing, 1 all of it."""
        return (self.each - self.dst[:, None, None]).nanmean(0) / (self.src - self.dst).mean()

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a cell: kind, method, layer, place, value and effect (in the metric's unit), recovered, prompts."""
        import pandas as pd

        effect = (self.each - self.dst[:, None, None]).nanmean(0)
        counts = (~self.each.isnan()).sum(0)
        return pd.DataFrame(
            {
                "kind": self.kind,
                "method": self.method,
                "layer": layer,
                "place": place,
                "value": self.values[layer, i].item(),
                "effect": effect[layer, i].item(),
                "recovered": self.recovered[layer, i].item(),
                "prompts": int(counts[layer, i]),
            }
            for layer in range(self.each.shape[1])
            for i, place in enumerate(self.places)
        )

    def error(self, exact: "PatchGrid") -> "GridError":
        """How far this grid is from an exact one of the same cells."""
        if self.each.shape != exact.each.shape or self.kind != exact.kind:
            raise SublimError(f"grids of {self.kind} {list(self.each.shape)} and {exact.kind} {list(exact.each.shape)}")
        mine, true = ((g.each - g.dst[:, None, None]).nanmean(0).flatten() for g in (self, exact))
        both = torch.stack([mine, true])
        return GridError(torch.corrcoef(both)[0, 1].item(), (mine - true).abs().max().item(), true.abs().max().item())

    def plot(self) -> "Figure":
        from sublim_interp import figures

        return figures.patch_grid(self.frame)


class GridError(NamedTuple):
    """How well attribution stands in for patching."""

    correlation: float
    """Pearson's, over cells."""
    max_abs: float
    """Largest error of an effect, in the metric's unit."""
    largest: float
    """Largest exact effect, to compare with."""


@dataclass(frozen=True, eq=False)
class Patching:
    """Two models, the prompts on which they are compared, and the metric. Made by `patch`."""

    src: torch.nn.Module
    dst: torch.nn.Module
    prompts: Prompts
    src_prompts: Prompts
    metric: Metric

    def swapped(self) -> "Patching":
        """The other way round: noising where this is denoising."""
        return replace(self, src=self.dst, dst=self.src, prompts=self.src_prompts, src_prompts=self.prompts)

    # one patch

    def at(self, site: str, positions: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> Patch:
        """The patch that puts `src`'s value of one hook, one layer's heads, or one parameter into `dst`.

        Activations need prompts of one length. Raises SublimError where there are several, or no such site.
        """
        parameters = dict(self.src.named_parameters(remove_duplicate=False))
        if site in parameters:
            if positions is not None or heads is not None:
                raise SublimError(f"'{site}' is a parameter: it has no positions and no heads")
            return Patch((Piece(site, parameters[site].detach().clone()),))
        together = batches(self.src_prompts)
        if len(together) > 1:
            raise SublimError("a patch of activations needs prompts of one length; choose some, or use `grid`")
        value = _see(self.src, [site], together[0][1])[0][site]
        return Patch((Piece(site, value, _tuple(positions), _tuple(heads)),))

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
        """Every cell's patch alone, exactly: layer × position, for `heads` layer × head (at all positions together),
        for `weights` layer × module.

        Cells share what they have in common. All layers of some positions run in one forward, whose batch grows: at
        each layer come the rows patched there, so nothing is computed twice before it. Positions before the patched
        ones are read from the key-value cache of the unpatched run. `positions_at_once` changes speed only.
        """
        if kind == "weights":
            return self._weights_grid()
        depth = len(decoder_layers(self.dst))
        found = []
        for (places, ids), (_, src_ids) in zip(batches(self.prompts), batches(self.src_prompts), strict=True):
            src, logits = _see(self.src, _sites(self.dst, kind), src_ids)
            theirs = self.metric(logits)
            size = max(1, TOKENS // (depth * ids.shape[1]))
            for i in range(0, len(places), size):
                some = slice(i, i + size)
                part = {name: value[some] for name, value in src.items()}
                values, before = _cells(self.dst, ids[some], part, kind, self.metric, positions_at_once)
                found.append((places[some], values, theirs[some], before))
        return self._assemble(kind, "exact", found)

    def attribution(self, kind: GridKind = "resid_pre") -> PatchGrid:
        """`grid` to first order: the metric's gradient in `dst` times what would be put there minus what is there.

        One forward of each model and one backward for all cells (Nanda 2023, "Attribution patching"; Syed et al.
        2310.10348, equation 1). Beside `grid`, `error` says how good it is. Not for `weights`.
        """
        if kind == "weights":
            raise SublimError(f"no attribution of weights; valid kinds: {', '.join(get_args(GridKind)[:-1])}")
        found = []
        sites = _sites(self.dst, kind)
        for (places, ids), (_, src_ids) in zip(batches(self.prompts), batches(self.src_prompts), strict=True):
            with torch.no_grad():
                src, logits = _see(self.src, sites, src_ids)
            here, slopes, before = _slopes(self.dst, sites, ids, self.metric)
            change = torch.stack([slopes[s] * (src[s] - here[s]) for s in sites], 1)
            effect = change.sum((2, 4)) if kind == "heads" else change.sum(-1)
            found.append((places, before[:, None, None] + effect, self.metric(logits), before))
        return self._assemble(kind, "attribution", found)

    def _assemble(self, kind: GridKind, method: Literal["exact", "attribution"], found: list[_Batch]) -> PatchGrid:
        """One grid of the cells found batch by batch: (places of the prompts, cells, metric of src, metric of dst)."""
        depth, width = found[0][1].shape[1], max(values.shape[2] for _, values, *_ in found)
        each = torch.full((len(self.prompts), depth, width), float("nan"))
        src, dst = torch.empty(2, len(self.prompts))
        for places, values, theirs, before in found:
            each[places, :, width - values.shape[2] :] = values
            src[places], dst[places] = theirs, before
        labels = tuple(range(width)) if kind == "heads" else tuple(range(-width, 0))
        return PatchGrid(kind, method, each, src, dst, labels)

    def _weights_grid(self) -> PatchGrid:
        ours, theirs = decoder_layers(self.dst), decoder_layers(self.src)
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in ours[0].named_parameters()))
        prefix = next(name for name, module in self.dst.named_modules() if module is ours)
        each = torch.empty(len(self.prompts), len(ours), len(modules))
        for layer in range(len(ours)):
            for i, module in enumerate(modules):
                source = theirs[layer].get_submodule(module).named_parameters(recurse=False)
                pieces = (Piece(f"{prefix}.{layer}.{module}.{name}", p.detach()) for name, p in source)
                with Patch(tuple(pieces)).on(self.dst):
                    each[:, layer, i] = measure(self.dst, self.prompts, self.metric)
        before = measure(self.dst, self.prompts, self.metric)
        carried = measure(self.src, self.src_prompts, self.metric)
        return PatchGrid("weights", "exact", each, carried, before, tuple(modules))


def patch(
    src: Subject,
    dst: Subject,
    prompts: Prompts | None = None,
    metric: Metric | None = None,
    src_prompts: Prompts | None = None,
) -> Patching:
    """Patching from `src` into `dst` on the same prompts, or from `src` on others of the same lengths.

    Replicates bring their held-out questions and the trait's margin; models need both.
    Raises SublimError for models of another depth or width, or that are in training mode.
    """
    models = model_of(src), model_of(dst)
    ours: Any = [m.config for m in models]
    shapes = [(c.get_text_config().num_hidden_layers, c.get_text_config().hidden_size) for c in ours]
    if shapes[0] != shapes[1]:
        raise SublimError(f"patch: src and dst have (layers, width) {shapes[0]} and {shapes[1]}; they must agree")
    if any(m.training for m in models):
        raise SublimError("patch: a model is in training mode, where dropout is on; call model.eval() first")
    asked = part_of("prompts", prompts, dst, src)
    others = asked if src_prompts is None else src_prompts
    if [len(p) for p in asked] != [len(p) for p in others]:
        raise SublimError("patch: prompts and src_prompts must have the same number and the same lengths, in order")
    return Patching(*models, asked, others, part_of("metric", metric, dst, src))


# --- how cells are computed together ----------------------------------------------------------------------------------


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _sites(model: torch.nn.Module, kind: GridKind) -> list[str]:
    if kind == "heads":
        return [f"blocks.{layer}.attn.hook_z" for layer in range(len(decoder_layers(model)))]
    names = hook_names(model, (cast(Stream, kind),))
    if not names:
        known = sorted({n.rpartition("hook_")[2] for n in hook_names(model)} - {"pattern"})
        raise SublimError(f"{type(model).__name__} has no '{kind}'; valid: {', '.join([*known, 'heads', 'weights'])}")
    return names


def _see(
    model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"]
) -> tuple[dict[str, Tensor], Float[Tensor, "prompt vocabulary"]]:
    """What one forward shows at the sites, heads among them, and its logits at the answer."""
    at_heads = {_layer_of(model, s): s for s in sites if s.endswith("hook_z")}
    found: dict[str, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        return lambda value: found.__setitem__(at_heads[layer], value.detach())

    with (
        torch.no_grad(),
        _heads(model, {layer: keep(layer) for layer in at_heads}),
        capture(model, [s for s in sites if s not in at_heads.values()]) as seen,
    ):
        logits = logits_of(model, ids)
    return {**seen, **found}, logits


def _slopes(
    model: torch.nn.Module, sites: Sequence[str], ids: Int[Tensor, "prompt position"], metric: Metric
) -> tuple[dict[str, Tensor], dict[str, Tensor], Float[Tensor, " prompt"]]:
    """Values and gradients of the metric at the sites, and the metric, by prompt."""
    at_heads = {_layer_of(model, s): s for s in sites if s.endswith("hook_z")}
    heads: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def visit(value: Tensor) -> Tensor:
            heads[at_heads[layer]] = value.detach()
            value = value if value.requires_grad else value.requires_grad_()
            value.register_hook(lambda g: slopes.__setitem__(at_heads[layer], g.detach()))
            return value

        return visit

    rest = [s for s in sites if s not in at_heads.values()]
    with (
        torch.enable_grad(),
        frozen(model),
        _heads(model, {layer: keep(layer) for layer in at_heads}),
        capture(model, rest, gradients=True) as seen,
    ):
        measured = metric(logits_of(model, ids))
        measured.sum().backward()
    return {**seen, **heads}, {**seen.gradients, **slopes}, measured.detach()


def _cells(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    src: dict[str, Tensor],
    kind: GridKind,
    metric: Metric,
    at_once: int | None,
) -> tuple[Float[Tensor, "prompt layer place"], Float[Tensor, " prompt"]]:
    """The metric of each patch of one kind, and without any, on prompts of one length."""
    depth, (prompts, length) = len(decoder_layers(model)), ids.shape
    values, unpatched = list(src.values()), _Unpatched()
    if kind == "heads":
        heads = values[0].shape[2]

        def swap(layer: int) -> Callable[[Tensor], Tensor]:
            def put(stream: Tensor) -> Tensor:
                new = stream.clone()
                tail = new[-heads * prompts :].unflatten(0, (heads, prompts))
                for head in range(heads):
                    tail[head, :, :, head] = values[layer][:, :, head]
                return new

            return put

        with _heads(model, {layer: swap(layer) for layer in range(depth)}):
            return _grown(model, ids, unpatched, 0, heads, metric), unpatched.metric

    if at_once is None:
        size = sum(p.numel() for p in decoder_layers(model).parameters())
        pieces = math.ceil(length / max(1, _WORTH // (size * depth * prompts * length)))
        at_once = math.ceil(length / pieces)
    if at_once < length:
        unpatched = _Unpatched(_cache(model))
    out = torch.empty(prompts, depth, length)
    for start in range(0, length, at_once):
        places = torch.arange(start, min(length, start + at_once))
        prefix = start if unpatched.whole(length) else 0

        def swap_at(layer: int, places: Tensor = places, prefix: int = prefix) -> Callable[[Tensor], None]:
            def put(stream: Tensor) -> None:  # has just been computed, for this place alone: no copy is needed
                tail = stream[-len(places) * prompts :].unflatten(0, (len(places), prompts))
                tail[torch.arange(len(places)), :, places - prefix] = values[layer][:, places].transpose(0, 1)

            return put

        with ExitStack() as held:
            held.enter_context(attached(model, {name: swap_at(layer) for layer, name in enumerate(src)}))
            if kind != "mlp_out":
                held.enter_context(_last_mlp_at_the_answer(model))
            out[:, :, places] = _grown(model, ids, unpatched, prefix, len(places), metric)
    return out, unpatched.metric


_WORTH = 300_000_000
"""Parameters × tokens that one forward should carry: with fewer the calls themselves cost more than the sums."""


@contextmanager
def _last_mlp_at_the_answer(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block the last layer's MLP sees the last position alone, all that the answer depends on.

    What it adds there is added to the other positions too, where nobody looks. Architectures whose MLP is not known
    are left as they are.
    """
    with ExitStack() as held:
        if hook_names(model, ("mlp_out",)):
            mlp = decoder_layers(model)[-1].get_submodule("mlp")
            held.callback(mlp.register_forward_pre_hook(lambda _mlp, args: (args[0][:, -1:],)).remove)
        yield


def _cache(model: torch.nn.Module) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=cast(Any, model.config))


@dataclass
class _Unpatched:
    """The prompts without a patch: the first forward of a grid fills this, the others build on it."""

    cache: Any = None
    """Keys and values; None where the first forward is the only one."""
    streams: list[Float[Tensor, "prompt position d_model"]] = field(default_factory=list)
    """At the entry of each layer."""
    metric: Float[Tensor, " prompt"] = field(default_factory=lambda: torch.empty(0))

    def keeps(self) -> bool:
        """Whether keys and values are kept."""
        return self.cache is not None

    def whole(self, length: int) -> bool:
        """Whether the cache holds all positions: a sliding window forgets the first, and is then of no use."""
        layers = self.cache.layers if self.streams and self.keeps() else []
        return bool(layers) and all(x.get_seq_length() == length == x.keys.shape[-2] for x in layers)


def _grown(
    model: torch.nn.Module,
    ids: Int[Tensor, "prompt position"],
    unpatched: _Unpatched,
    prefix: int,
    cells: int,
    metric: Metric,
) -> Float[Tensor, "prompt layer cell"]:
    """The metric of each cell, from one forward whose batch grows.

    At the entry of each layer come `cells` copies of its unpatched stream, for edits, which find the rows of their
    layer at the end of the batch. In the first forward of a grid the unpatched prompts themselves go ahead of them.
    The first `prefix` positions are read from the cache.
    """
    depth, prompts = len(decoder_layers(model)), len(ids)
    first = not unpatched.streams
    own = prompts if first else 0

    def grow(value: Any, rows: int) -> Any:
        """More copies of a tensor that has a row a prompt; what has one row for all prompts serves all cells too."""
        if isinstance(value, tuple):
            return tuple(grow(v, rows) for v in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != prompts or prompts == 1:
            return value
        return value.repeat(rows, *[1] * (value.dim() - 1))

    past: Any = _cache(model) if prefix or (first and unpatched.keeps()) else None
    if prefix:
        for layer, full in enumerate(unpatched.cache.layers):
            rows = (layer + 1) * cells
            keys, values = (x[:, :, :prefix].repeat(rows, 1, 1, 1) for x in (full.keys, full.values))
            past.update(keys, values, layer)

    def enter(layer: int) -> Callable[..., Any]:
        rows = first + (layer + 1) * cells

        def add(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            stream = args[0] if args else kwargs["hidden_states"]
            if first:
                unpatched.streams.append(stream[:prompts].clone())
            fresh = [unpatched.streams[layer][:, prefix:]] * cells
            wider = torch.cat([stream, *fresh] if first or layer else fresh)
            rest = {k: grow(v, rows) for k, v in kwargs.items() if k != "hidden_states"}
            return (wider, *(grow(a, rows) for a in args[1:])), rest

        return add

    with ExitStack() as held:
        for number, layer in enumerate(decoder_layers(model)):
            handle = layer.register_forward_pre_hook(enter(number), with_kwargs=True, prepend=True)
            held.callback(handle.remove)
        rest = ids[:, prefix:]
        logits = model(input_ids=rest, past_key_values=past, use_cache=past is not None, logits_to_keep=1).logits
    each = metric(logits[:, -1]).float()
    if first:
        unpatched.metric = each[:prompts]
        for layer, full in enumerate(past.layers if past else ()):
            unpatched.cache.update(full.keys[:prompts], full.values[:prompts], layer)
    return each[own:].unflatten(0, (depth, cells, prompts)).permute(2, 0, 1)
