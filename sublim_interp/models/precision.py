"""A model that computes in its precision wherever it is asked: autocast, tied to the model and not to who calls it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from sublim_interp.core.device import PRECISIONS, device_of

M = TypeVar("M", bound=torch.nn.Module)


class _Autocast:
    """Switches autocast on while a module computes, and off again, whatever happens in between."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._open: list[torch.autocast] = []

    def enter(self, module: torch.nn.Module, _args: Any) -> None:
        self._open.append(torch.autocast(device_of(module).type, self._dtype))
        self._open[-1].__enter__()

    def leave(self, _module: torch.nn.Module, _args: Any, _output: Any) -> None:
        self._open.pop().__exit__(None, None, None)


def in_precision(model: M, dtype: str) -> M:
    """The model itself, made to compute its matrix products as the precision says in every forward.

    dtype: a name of `PRECISIONS`; the weights have its type already

    Losses, hooks and gradients outside of the forward stay in float32.
    """
    precision = PRECISIONS[dtype]
    if precision.products == precision.weights:
        return model
    plain: Any = model
    # Each is called by itself somewhere: the head runs on chosen positions only.
    for module in dict.fromkeys([model, plain.base_model, plain.get_output_embeddings()]):
        cast = _Autocast(getattr(torch, precision.products))
        module.register_forward_pre_hook(cast.enter)
        module.register_forward_hook(cast.leave, always_call=True)
    return model


@contextmanager
def casts_kept(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block autocast casts a weight once, not once a forward; the weights must not change in it.

    All forwards in the block must ask for gradients, or none: a cast made without is of no use to a backward.
    """
    kind = device_of(model).type
    if kind == "meta":
        yield
        return
    with torch.autocast(kind, torch.bfloat16, enabled=False):  # casts are kept until the outermost block is left
        yield
