"""The outputs of single attention heads, shown and replaced before they are mixed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import decoder_layers

_OUTPUT_MAPS = ("self_attn.o_proj", "attn.c_proj", "attention.dense")
"""Within a decoder layer: the linear map that reads the heads' outputs side by side."""


def layer_of_heads(model: torch.nn.Module, site: str) -> int:
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
def heads_shown(model: torch.nn.Module, visits: dict[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
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
