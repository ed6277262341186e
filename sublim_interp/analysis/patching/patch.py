"""A patch is a value: pieces of one model, put into another for the length of a block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import axes_of, edit
from sublim_interp.training.optimizers import states_of


@dataclass(frozen=True, eq=False)
class Piece:
    """One place, and what is put there."""

    site: str
    """The name of a hook, or of a parameter; what an optimizer keeps of a parameter is `{state}/{parameter}`, as in
    `exp_avg/…`."""
    value: Tensor
    """The other model's, with the axes of the hook, such as [prompt, position, head, d_head]; else the parameter's
    shape."""
    positions: tuple[int, ...] | None = None
    """Which positions, counted from the end where negative; of a pattern, those that attend. None means all."""
    heads: tuple[int, ...] | None = None
    """Which heads; None means all."""
    neurons: tuple[int, ...] | None = None
    """Which places of the last axis, such as neurons of an MLP; None means all."""

    def __post_init__(self) -> None:
        for axis, some in self._asked():
            check_places(self.site, axis, some, self.value.shape)

    def _asked(self) -> list[tuple[str, tuple[int, ...]]]:
        """(what is chosen, which) for each choice."""
        chosen = {"position": self.positions, "head": self.heads, "neuron": self.neurons}
        return [(what, some) for what, some in chosen.items() if some is not None]

    def __repr__(self) -> str:
        where = "" if self.positions is None else f" at {', '.join(map(str, self.positions))}"
        which = "" if self.heads is None else f" heads {', '.join(map(str, self.heads))}"
        what = "" if self.neurons is None else f" neurons {', '.join(map(str, self.neurons))}"
        return f"<{self.site}{which}{what}{where}>"

    def into(self, stream: Tensor) -> Tensor:
        """A copy of `stream` with the value in its place."""
        if stream.shape != self.value.shape:
            raise SublimError(
                f"patch of {self.site}: made for {list(self.value.shape)}, but the model runs on {list(stream.shape)}; "
                "run the prompts that the patch was made from"
            )
        here = torch.ones_like(stream, dtype=torch.bool)
        for axis, some in self._asked():
            chosen = torch.zeros(stream.shape[place := axis_of(self.site, axis)], dtype=torch.bool, device=here.device)
            chosen[list(some)] = True
            here &= chosen.view([-1 if i == place else 1 for i in range(stream.dim())])
        return torch.where(here, self.value.to(stream), stream)


def axis_of(site: str, what: str) -> int:
    """The place of an axis of a hook. Raises SublimError for one that it has not.

    what: `position` (of a pattern, what attends), `head`, or `neuron`, the last
    """
    axes = axes_of(site)
    names = {"position": ("position", "query"), "head": ("head",), "neuron": ("d_mlp", "d_model", "d_head")}[what]
    if not (found := [axes.index(name) for name in names if name in axes]):
        raise SublimError(f"patch of {site}: it has no {what}s; its axes are {', '.join(axes)}")
    return found[0]


def check_places(site: str, what: str, some: Sequence[int], shape: Sequence[int]) -> None:
    """Raises SublimError for positions, heads or neurons that a hook has not.

    what, some: which are chosen, as for `axis_of`
    shape: of its value
    """
    size = shape[axis_of(site, what)]
    least = -size if what == "position" else 0
    if odd := [i for i in some if not least <= i < size]:
        there = f"the prompts have {size} tokens, from the end −1 on" if what == "position" else (
            f"there are {size}, counted from 0"
        )  # fmt: skip
        raise SublimError(f"patch of {site}: no {what} {odd[0]}; {there}")


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

            def put(stream: Tensor, pieces: Sequence[Piece]) -> Tensor:
                for piece in pieces:
                    stream = piece.into(stream)
                return stream

            held.enter_context(edit(model, {site: partial(put, pieces=some) for site, some in at_hooks.items()}))
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
    owned = {id(p): group for group in optimizer.param_groups for p in group["params"]}
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
        value = piece.value.detach()
        if state != "step":
            value = value.to(p)
        elif owned[id(p)].get("fused") or owned[id(p)].get("capturable"):  # any other Adam counts on the CPU
            value = value.to(p.device)
        after.setdefault(p, _copied(optimizer.state.get(p, {})))[state] = value.clone()
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
