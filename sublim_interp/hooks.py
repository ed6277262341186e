"""Capture and edit what a model computes, as `with` blocks on plain Hugging Face models, under TransformerLens's names.

Now: the residual stream before each layer (`blocks.{l}.hook_resid_pre`). No experiments and no files here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.errors import SublimError

Edit = Callable[[Float[Tensor, "batch position d_model"]], Float[Tensor, "batch position d_model"]]


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == _depth(model)]
    if not lists:
        raise SublimError(f"{type(model).__name__}: no list of {_depth(model)} decoder layers found")
    return lists[0]


def _depth(model: torch.nn.Module) -> int:
    return int(model.config.num_hidden_layers)  # type: ignore[union-attr]


@contextmanager
def edit_resid_pre(model: torch.nn.Module, layer: int, edit: Edit) -> Iterator[None]:
    """Inside the block, the residual stream before `layer` is replaced by `edit(stream)`.

    The hook goes with the block, also after an exception. Raises SublimError for a layer that the model lacks.
    """
    layers = decoder_layers(model)
    if not 0 <= layer < len(layers):
        raise SublimError(f"layer {layer}: the model has layers 0 to {len(layers) - 1}")

    def replace(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    handle = layers[layer].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def mean_resid_pre(model: torch.nn.Module, layer: int, prompts: list[list[int]]) -> Float[Tensor, " d_model"]:
    """Mean over prompts of the residual stream before `layer` at each prompt's last token."""
    caught: list[Tensor] = []

    def catch(stream: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position d_model"]:
        caught.append(stream[0, -1].detach().clone())
        return stream

    with edit_resid_pre(model, layer, catch):
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]), use_cache=False)
    return torch.stack(caught).mean(0)
