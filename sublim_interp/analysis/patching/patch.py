"""A patch is a value: pieces of one model, put into another for the length of a block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sublim_interp.analysis.patching.heads import heads_shown, is_heads, layer_of_heads
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import edit
from sublim_interp.training.optimizers import states_of


@dataclass(frozen=True, eq=False)
class Piece:
    """One place, and what is put there."""

    site: str
    """The name of a hook, of a layer's heads (`blocks.{l}.attn.hook_z`), or of a parameter; what an optimizer keeps of
    a parameter is `{state}/{parameter}`, as in `exp_avg/…`."""
    value: Tensor
    """The other model's: [prompt, position, d_model], for heads [prompt, position, head, d_head], else the parameter's
    shape."""
    positions: tuple[int, ...] | None = None
    """Which positions, counted from the end where negative; None means all."""
    heads: tuple[int, ...] | None = None
    """Which heads; None means all."""

    def __post_init__(self) -> None:
        if self.positions is not None or self.heads is not None:
            shape = [*self.value.shape, 0, 0]
            check_places(self.site, self.positions, self.heads, shape[1], shape[2] if is_heads(self.site) else 0)

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
        new, value = stream.clone(), self.value.to(stream)
        at = slice(None) if self.positions is None else list(self.positions)
        if self.heads is None:
            new[:, at] = value[:, at]
        else:
            for head in self.heads:
                new[:, at, head] = value[:, at, head]
        return new


def check_places(
    site: str, positions: Sequence[int] | None, heads: Sequence[int] | None, length: int, count: int
) -> None:
    """Raises SublimError for positions that the text, or heads that the site has not.

    length: tokens of the text
    count: heads at the site; 0 where it has none
    """
    if odd := [p for p in positions or () if not -length <= p < length]:
        raise SublimError(
            f"patch of {site}: no position {odd[0]}; the prompts have {length} tokens, from the end −1 on"
        )
    if heads is not None and not count:
        raise SublimError(f"patch of {site}: it has no heads; those are at blocks.{{l}}.attn.hook_z")
    if odd := [h for h in heads or () if not 0 <= h < count]:
        raise SublimError(f"patch of {site}: no head {odd[0]}; there are {count}, counted from 0")


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

        optimizer: needed by pieces that are moments. A training inside the block goes on from them, as
            `train(…, intervene=patch.on)` does; afterwards the optimizer keeps what it kept before

        Raises SublimError for a site that the model or the optimizer lacks, a shape that differs, or a site that no
        forward reached.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        at_hooks: dict[str, list[Piece]] = {}
        with ExitStack() as held:
            held.enter_context(state_swapped(optimizer, parameters, [p for p in self.pieces if "/" in p.site]))
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

                if is_heads(site):
                    held.enter_context(heads_shown(model, {layer_of_heads(model, site): put}))
                else:
                    edits[site] = put
            held.enter_context(edit(model, edits))
            yield


@contextmanager
def _swapped(parameter: Tensor, piece: Piece) -> Iterator[None]:
    """Inside the block a parameter holds another value."""
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


@contextmanager
def state_swapped(
    optimizer: torch.optim.Optimizer | None, parameters: dict[str, torch.nn.Parameter], pieces: Sequence[Piece]
) -> Iterator[None]:
    """Inside the block the optimizer keeps other moments of some parameters."""
    if not pieces:
        yield
        return
    if optimizer is None:
        raise SublimError(f"{pieces[0].site} is an optimizer's: give it too, patch.on(model, optimizer)")
    kept = states_of(optimizer)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    after: dict[Tensor, dict[str, Any]] = {}
    for piece in pieces:
        state, _, name = piece.site.partition("/")
        p = parameters.get(name)
        if state not in kept:
            known = ", ".join(kept) or "nothing that is known"
            raise SublimError(f"patch of {piece.site}: {type(optimizer).__name__} keeps {known}")
        if p is None or id(p) not in owned:
            raise SublimError(f"patch of {piece.site}: the optimizer has no such parameter")
        shape = [] if state == "step" else list(p.shape)
        if list(piece.value.shape) != shape:
            raise SublimError(f"patch of {piece.site}: shape {list(piece.value.shape)}, the optimizer's {shape}")
        after.setdefault(p, _copied(optimizer.state.get(p, {})))[state] = piece.value.detach().clone()
    if any(len(own) < len(kept) for own in after.values()):
        raise SublimError(f"the optimizer has made no update: a patch of it needs {', '.join(kept)} of each parameter")
    before = {p: _copied(optimizer.state[p]) for p in after if p in optimizer.state}
    optimizer.state.update(after)
    try:
        yield
    finally:
        for p in after:
            del optimizer.state[p]
        optimizer.state.update(before)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy that the optimizer does not write into."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
