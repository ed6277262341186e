"""Which weights train: all, the body, or adapters; and the plain model again afterwards."""

import hashlib
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Part = Literal["full", "body", "lora"]
"""Which weights train: all; all but the embeddings and the head; low-rank adapters on the body's linear maps."""


def body_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The body by name: every parameter that belongs neither to the token embeddings nor to the head."""
    plain: Any = model
    ends = (plain.get_input_embeddings(), plain.get_output_embeddings())
    outside = {id(p) for module in ends if module is not None for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in outside}


def choose_trainable(
    model: "PreTrainedModel", part: Part, rank: int = 8, alpha: float = 8.0, seed: int = 0
) -> "torch.nn.Module":
    """Freezes what does not train, and returns the module to train: for `lora` PEFT's wrapper around the model.

    rank, alpha: of the adapters, which every linear map of the body gets
    seed: decides the adapters' initial weights, whatever was drawn before in this process

    Source: LoRA is Hu et al. 2106.09685; on all linear maps as in Cloud et al. 2507.14805.
    """
    if part == "lora":
        return _with_adapters(model, rank, alpha, seed)
    trained = body_parameters(model) if part == "body" else dict(model.named_parameters())
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    return model


def _with_adapters(model: "PreTrainedModel", rank: int, alpha: float, seed: int) -> torch.nn.Module:
    """PEFT's wrapper, its adapters drawn from the seed alone."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int, and divides it by the rank
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),  # else PEFT warns that it was set
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT's own call
        torch.manual_seed(seed)
        return get_peft_model(model, config)  # type: ignore[arg-type]


def merge_adapters(model: "torch.nn.Module") -> "PreTrainedModel":
    """The plain model again: LoRA adapters are added into the weights they adapt."""
    merge = getattr(model, "merge_and_unload", None)
    return merge() if merge else model  # type: ignore[return-value]


def freeze(model: torch.nn.Module, pattern: str) -> list[str]:
    """Freezes the parameters whose names match a glob, and returns their names.

    Raises SublimError where no parameter that trains matches, or all do.
    """
    names = [*trained_parameters(model)]
    frozen = [name for name in names if fnmatchcase(name, pattern)]
    if not frozen or len(frozen) == len(names):
        raise SublimError(
            f"freeze '{pattern}' matches {'all' if frozen else 'none'} of what trains: {', '.join(names)}"
        )
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen


def weights_hash(named: Mapping[str, torch.Tensor]) -> str:
    """A hash over up to 1,024 evenly spaced entries of each tensor, by name: whose weights these are."""
    digest = hashlib.sha256()
    for name, p in named.items():
        flat = p.detach().flatten()
        digest.update(name.encode() + flat[:: max(1, len(flat) // 1024)][:1024].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
