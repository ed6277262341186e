"""Capture and edit what a model computes, as `with` blocks on plain Hugging Face models, under TransformerLens's names.

For each layer l: `blocks.{l}.hook_resid_pre`, `.hook_resid_mid`, `.hook_resid_post`, `.hook_attn_out`, `.hook_mlp_out`
and `blocks.{l}.attn.hook_pattern`. A new architecture is one row of `_ARCHITECTURES`. No experiments and no files here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sublim_interp.errors import SublimError

Kind = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "pattern"]
"""What can be seen in a layer. All but `pattern` have the shape [batch, position, d_model] and can be edited."""
Edit = Callable[[Float[Tensor, "batch position d_model"]], Float[Tensor, "batch position d_model"]]

KINDS: tuple[Kind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "pattern")


class _Parts(NamedTuple):
    """Names of a decoder layer's submodules, for one architecture."""

    attention: str
    """Gives (output, pattern)."""
    attn_out: str
    """Its output is what attention adds to the residual stream: after a post-norm, where there is one."""
    mlp_out: str
    """Its output is what the MLP adds to the residual stream."""
    mid: str
    """Its input is the residual stream between the two."""


_LLAMA = _Parts("self_attn", "self_attn", "mlp", "post_attention_layernorm")
_GEMMA = _Parts("self_attn", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm")
_ARCHITECTURES: dict[str, _Parts] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _Parts("self_attn", "resid_attn_dropout", "resid_mlp_dropout", "post_attention_layernorm"),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _Parts("self_attn", "post_attention_layernorm", "post_feedforward_layernorm", "mlp"),
    "gpt2": _Parts("attn", "attn", "mlp", "ln_2"),
    "gpt_neox": _Parts("attention", "post_attention_dropout", "post_mlp_dropout", "post_attention_layernorm"),
}


def _text_config(model: torch.nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config()


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it. Raises SublimError where there is none."""
    depth = _text_config(model).num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise SublimError(f"{type(model).__name__}: no list of {depth} decoder layers found")


def hook_names(model: torch.nn.Module, kinds: Iterable[Kind] = KINDS) -> list[str]:
    """Every name that `capture` knows on this model, layer by layer, in the order in which a layer computes them.

    A layer whose attention and MLP read the same stream (parallel residual) has no `resid_mid`; of an architecture
    without a row in the table only `resid_pre` and `resid_post` are known.
    """
    config = _text_config(model)
    known: set[Kind] = {"resid_pre", "resid_post"}
    if config.model_type in _ARCHITECTURES:
        known = set(KINDS)
        if getattr(config, "use_parallel_residual", False):
            known.remove("resid_mid")
    wanted = set(kinds) & known
    return [
        f"blocks.{layer}.{'attn.' if kind == 'pattern' else ''}hook_{kind}"
        for layer in range(len(decoder_layers(model)))
        for kind in KINDS
        if kind in wanted
    ]


class _Point(NamedTuple):
    """Where a name is: the input of a module, or the output (of which `place` counts, where it is a tuple)."""

    module: torch.nn.Module
    side: Literal["input", "output"]
    place: int = 0
    shared: bool = False
    """The layer keeps the same tensor for its residual: a change must be made in place to reach both."""


def _points(model: torch.nn.Module, wanted: Iterable[str]) -> list[_Point]:
    names, layers = set(hook_names(model)), decoder_layers(model)
    architecture = _text_config(model).model_type
    points = []
    for name in wanted:
        if name not in names:
            first = ", ".join(n for n in hook_names(model) if n.startswith("blocks.0."))
            known = architecture in _ARCHITECTURES
            lacks = "" if known else f"; of the architecture {architecture} only the residual stream is known"
            raise SublimError(
                f"no hook '{name}' on {type(model).__name__} of {len(layers)} layers (from 0); each has: {first}{lacks}"
            )
        layer, kind = layers[int(name.split(".")[1])], name.rpartition("hook_")[2]
        points.append(_point(layer, kind, architecture))
    return points


def _point(layer: torch.nn.Module, kind: str, architecture: str) -> _Point:
    if kind in ("resid_pre", "resid_post"):
        return _Point(layer, "input" if kind == "resid_pre" else "output")
    parts = _ARCHITECTURES[architecture]
    if kind == "resid_mid":
        return _Point(layer.get_submodule(parts.mid), "input", shared=True)
    if kind == "pattern":
        return _Point(layer.get_submodule(parts.attention), "output", place=1)
    return _Point(layer.get_submodule(parts.attn_out if kind == "attn_out" else parts.mlp_out), "output")


@contextmanager
def attached(model: torch.nn.Module, visits: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Inside the block `visits[name]` sees the tensor called `name` in every forward, and what it returns, if anything,
    takes its place.

    What `capture` and `edit` are made of. Raises SublimError for a name that the model lacks.
    """
    with ExitStack() as held:
        for point, visit in zip(_points(model, visits), visits.values(), strict=True):
            held.callback(_attach(point, visit).remove)
        yield


def _attach(point: _Point, visit: Callable[[Tensor], Tensor | None]) -> RemovableHandle:

    def pre(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        seen = args[0] if args else kwargs["hidden_states"]
        new = visit(seen)
        if new is None:
            return None
        if point.shared:
            seen.copy_(new)
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def post(_module: torch.nn.Module, _args: tuple, output: Any) -> Any:
        if not isinstance(output, tuple):
            return visit(output)
        new = visit(output[point.place])
        return None if new is None else (*output[: point.place], new, *output[point.place + 1 :])

    if point.side == "input":
        return point.module.register_forward_pre_hook(pre, with_kwargs=True)
    return point.module.register_forward_hook(post)


class Captured(Mapping[str, Tensor]):
    """What was seen, by name, in the latest forward: `acts[name]`, and after a backward `acts.gradients[name]`.

    Tensors are detached and lie where the model left them: [batch, position, d_model], or for a pattern
    [batch, head, query, key].
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.gradients: dict[str, Tensor] = {}
        """Gradient of whatever was run backwards, by name; those of several backwards are added up."""
        self._seen: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._seen:
            known = ", ".join(self._seen) or "nothing: run the model inside the block"
            raise SublimError(f"'{name}' was not captured; there is: {known}")
        return self._seen[name]

    def __contains__(self, name: object) -> bool:
        return name in self._seen

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def _see(self, name: str, value: Tensor, *, gradients: bool) -> None:
        # An edit of the middle of a layer writes into the tensor that was seen there.
        self._seen[name] = value.detach().clone() if name.endswith("resid_mid") else value.detach()
        if not gradients:
            return
        if not torch.is_grad_enabled():
            raise SublimError(f"gradients of '{name}' are asked for, but the model ran under torch.no_grad()")
        if not value.requires_grad:  # behind frozen weights
            value.requires_grad_()
        self.gradients.pop(name, None)

        def add(gradient: Tensor) -> None:
            before = self.gradients.get(name)
            self.gradients[name] = gradient.detach() if before is None else before + gradient.detach()

        value.register_hook(add)


@contextmanager
def capture(model: torch.nn.Module, names: Iterable[str], *, gradients: bool = False) -> Iterator[Captured]:
    """Inside the block every forward of `model` leaves the tensors called `names` in the value of the block.

    With `gradients`, a backward inside the block leaves theirs in `.gradients`; the names of the attention patterns
    have none. A pattern is computed with eager attention, which is switched on for the block and changes the last bits
    of everything: it is refused while the model trains.
    The hooks go with the block, also after an exception. Raises SublimError for a name that the model lacks (on entry)
    and for one that never fired (on leaving).
    """
    caught = Captured(names)
    patterns = {name for name in caught.names if name.endswith("hook_pattern")}
    visits = {name: partial(caught._see, name, gradients=gradients and name not in patterns) for name in caught.names}
    with attached(model, visits), _eager(model) if patterns else nullcontext():
        yield caught
    _require_all(model, set(caught.names), set(caught))


def _require_all(model: torch.nn.Module, wanted: set[str], fired: set[str]) -> None:
    if lacking := sorted(wanted - fired):
        raise SublimError(
            f"hook '{lacking[0]}' never fired: no forward of this model reached it inside the block; "
            f"fired: {', '.join(sorted(fired)) or 'none'}; the model has: {', '.join(hook_names(model))}"
        )


@contextmanager
def _eager(model: torch.nn.Module) -> Iterator[None]:
    if model.training:
        raise SublimError("attention patterns need eager attention, which changes a training; call model.eval() first")
    before = _text_config(model)._attn_implementation
    choose: Any = model.set_attn_implementation
    choose("eager")
    try:
        yield
    finally:
        choose(before)


@contextmanager
def edit(model: torch.nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Inside the block the tensor called `name` is replaced by `edits[name](tensor)`, in every forward of `model`.

    Functions get [batch, position, d_model] and return the same shape; they must not write into what they get. Blocks
    nest, the outer edit acting first. The hooks go with the block, also after an exception. Raises SublimError for a
    name that the model lacks, for an attention pattern (to be captured only), and for an edit that never fired.
    """
    if patterns := [name for name in edits if name.endswith("hook_pattern")]:
        raise SublimError(f"'{patterns[0]}' can be captured but not edited: the model has used it when it is seen")
    fired: set[str] = set()

    def visit(name: str, value: Tensor) -> Tensor:
        fired.add(name)
        # The new middle of a layer is written over the old, of which autograd may keep a copy only.
        new = edits[name](value.clone() if name.endswith("resid_mid") else value)
        if new.shape != value.shape:
            raise SublimError(f"edit of '{name}': returned shape {list(new.shape)}, not {list(value.shape)}")
        return new

    with attached(model, {name: partial(visit, name) for name in edits}):
        yield
    _require_all(model, set(edits), fired)


def steer(
    model: torch.nn.Module, vector: Float[Tensor, " d_model"], layer: int, positions: slice = slice(None)
) -> AbstractContextManager[None]:
    """Inside the block `vector` is added to the residual stream before `layer`, at all positions or at those given."""

    def add(stream: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position d_model"]:
        if positions == slice(None):
            return stream + vector
        mask = torch.zeros(stream.shape[1], 1, dtype=stream.dtype, device=stream.device)
        mask[positions] = 1
        return stream + mask * vector

    return edit(model, {f"blocks.{layer}.hook_resid_pre": add})


def matching(model: torch.nn.Module, pattern: str) -> list[str]:
    """The hook names of `model` that match a glob, such as `blocks.*.hook_resid_post`; SublimError if none does."""
    names = hook_names(model, KINDS[:-1])
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise SublimError(f"no hook matches '{pattern}'; the model has: {', '.join(names)}")
    return found


# --- interventions while a model trains -------------------------------------------------------------------------------


class Effect:
    """How much an intervention took away in its latest use: norm of what was removed over norm of what there was."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shares: dict[str, Tensor] = {}

    def _take(self, place: str, value: Tensor, direction: Tensor) -> Tensor:
        """`value` without its part along `direction`, a unit vector of its last axis."""
        part = (value @ direction)[..., None] * direction
        self._shares[place] = part.detach().norm() / value.detach().norm().clamp_min(1e-30)
        return value - part

    @property
    def removed(self) -> dict[str, float]:
        """Share by place, 0 to 1."""
        return {place: float(share) for place, share in self._shares.items()}

    def _require(self, places: Iterable[str]) -> None:
        removed = self.removed
        if idle := [place for place in places if not removed.get(place)]:
            raise SublimError(f"the intervention {self._what} does nothing at {idle[0]}: nothing was removed there")


def unit_vector(direction: Tensor, where: str) -> Tensor:
    """The direction at length 1. Raises SublimError, which names `where`, for one without length."""
    length = direction.norm()
    if not torch.isfinite(length) or not length:
        raise SublimError(f"the direction at {where} has no length: there is nothing to remove")
    return direction / length


@contextmanager
def ablate(model: torch.nn.Module, directions: Mapping[str, Float[Tensor, " d_model"]]) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of the activations at each hook name.

    Raises SublimError for a direction without length, and on leaving where nothing was removed.
    """
    effect = Effect("ablate")
    units = {name: unit_vector(d, name) for name, d in directions.items()}
    with edit(model, {name: partial(_ablated, effect, name, unit) for name, unit in units.items()}):
        yield effect
    effect._require(units)


def _ablated(effect: Effect, name: str, unit: Tensor, value: Tensor) -> Tensor:
    return effect._take(name, value, unit)


@contextmanager
def project_gradients(model: torch.nn.Module, directions: Mapping[str, Float[Tensor, " d_model"]]) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of the gradients that pass each hook name backwards.

    Raises SublimError as `ablate` does; behind frozen weights no gradient passes.
    """
    effect = Effect("project-gradient")
    units = {name: unit_vector(d, name) for name, d in directions.items()}

    def visit(name: str, value: Tensor) -> None:
        if value.requires_grad:
            value.register_hook(partial(effect._take, name, direction=units[name]))

    with attached(model, {name: partial(visit, name) for name in units}):
        yield effect
    effect._require(units)


@contextmanager
def project_updates(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, directions: Mapping[str, Tensor]
) -> Iterator[Effect]:
    """Inside the block the part along a direction is taken out of each update of the weights, tensor by tensor.

    The optimiser's moments are left as they are. Parameters whose direction is zero are left alone; SublimError where
    that holds for all, where a name is no trained parameter of that shape, and on leaving where nothing was removed.
    """
    effect = Effect("project-update")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, d in directions.items():
        if name not in named or named[name].shape != d.shape:
            raise SublimError(f"project-update: the model trains no parameter {name} of the shape {list(d.shape)}")
    units = {name: unit_vector(d.flatten(), name) for name, d in directions.items() if d.any()}
    if not units:
        raise SublimError("project-update: the direction is zero in every parameter that trains")
    before: dict[str, Tensor] = {}

    def remember(*_: object) -> None:
        before.update({name: named[name].detach().clone() for name in units})

    @torch.no_grad()
    def project(*_: object) -> None:
        for name, unit in units.items():
            p = named[name]
            p.copy_(before[name] + effect._take(name, (p - before[name]).flatten(), unit).view_as(p))

    handles = [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project)]
    try:
        yield effect
    finally:
        for handle in handles:
            handle.remove()
    effect._require(units)
