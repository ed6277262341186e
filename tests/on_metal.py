"""Tensors that refuse float64 until they are on the CPU, as those of Apple's GPUs do. No test lives here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

M = TypeVar("M", bound=torch.nn.Module)


class OnMetal(torch.Tensor):
    """A tensor of a device without float64, as Apple's."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return super().__torch_function__(func, types, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A weight's copy is a weight on Metal."""
        memo[id(self)] = copy = torch.nn.Parameter(self.detach().clone(), self.requires_grad)
        return copy


def on_metal(model: M) -> M:
    """The model itself, its weights on Metal."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                weight = moved.setdefault(id(p), torch.nn.Parameter(p.detach().as_subclass(OnMetal), p.requires_grad))
                module._parameters[name] = weight
    return model


@contextmanager
def overwritten() -> Iterator[None]:
    """Inside the block a module that is brought to the CPU has new weights, as from another device."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
