"""Attention heads: the output of each, shown and replaced before the output map mixes them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import decoder_layers, output_map, text_config
from sublim_interp.models.hooks import require_stream


def heads_site(layer: int) -> str:
    """The name of a layer's heads, as TransformerLens has it."""
    return f"blocks.{layer}.attn.hook_z"


def is_heads(site: str) -> bool:
    """Whether a name is that of a layer's heads."""
    return site.endswith("hook_z")


def layer_of_heads(model: torch.nn.Module, site: str) -> int:
    """The layer of a name of heads. Raises SublimError where the model has no such one."""
    depth = len(decoder_layers(model))
    known = [heads_site(layer) for layer in range(depth)]
    if site not in known:
        raise SublimError(f"no site '{site}'; the heads' are blocks.{{l}}.attn.hook_z for layers 0 to {depth - 1}")
    return known.index(site)


@contextmanager
def heads_shown(model: torch.nn.Module, visits: dict[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Inside the block the heads' outputs are shown, and replaced by what a visitor returns, if anything.

    visits: by layer, a function of [batch, position, head, d_head]
    """
    count = text_config(model).num_attention_heads
    if visits:
        require_stream(model)
    with ExitStack() as held:
        for layer, visit in visits.items():

            def show(_module: torch.nn.Module, args: tuple, visit: Any = visit, layer: int = layer) -> tuple | None:
                if args[0].shape[-1] % count:
                    raise SublimError(
                        f"{type(model).__name__}: layer {layer} has other heads than the {count} of its configuration"
                    )
                new = visit(rearrange(args[0], "... (head d_head) -> ... head d_head", head=count))
                return None if new is None else (rearrange(new, "... head d_head -> ... (head d_head)"), *args[1:])

            held.callback(output_map(model, layer).register_forward_pre_hook(show).remove)
        yield
