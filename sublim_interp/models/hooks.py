"""Capture and edit what a Hugging Face model computes, as `with` blocks, under TransformerLens's names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import ARCHITECTURES, decoder_layers, text_config

Kind = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "pattern"]
"""What can be seen in a layer. All but `pattern` have the shape [batch, position, d_model] and can be edited."""


Edit = Callable[[Float[Tensor, "batch position d_model"]], Float[Tensor, "batch position d_model"]]


KINDS: tuple[Kind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "pattern")


def hook_names(model: torch.nn.Module, kinds: Iterable[Kind] = KINDS) -> list[str]:
    """Every name that `capture` knows on this model, layer by layer, in the order in which a layer computes them.

    A layer whose attention and MLP read the same stream (parallel residual) has no `resid_mid`; of an architecture
    without a row in the table only `resid_pre` and `resid_post` are known.
    """
    config = text_config(model)
    known: set[Kind] = {"resid_pre", "resid_post"}
    if config.model_type in ARCHITECTURES:
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
    architecture = text_config(model).model_type
    points = []
    for name in wanted:
        if name not in names:
            first = ", ".join(n for n in hook_names(model) if n.startswith("blocks.0."))
            known = architecture in ARCHITECTURES
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
    parts = ARCHITECTURES[architecture]
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
    before = text_config(model)._attn_implementation
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


def unit_vector(direction: Tensor, where: str) -> Tensor:
    """The direction at length 1. Raises SublimError, which names `where`, for one without length."""
    length = direction.norm()
    if not torch.isfinite(length) or not length:
        raise SublimError(f"the direction at {where} has no length: there is nothing to remove")
    return direction / length
