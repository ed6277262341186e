"""Which weights train: all, the body, or adapters; and the plain model again afterwards."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import without_adapters
from sublim_interp.models.loading import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Part = Literal["full", "body", "lora", "opening"]
"""Which weights train: all; all but the embeddings and the head; low-rank adapters on the body's linear maps; the
embedding of the token that opens every prompt."""

IN_WORDS = {
    "full": "all weights",
    "body": "the body: all weights but embeddings and head",
    "lora": "low-rank adapters of the body's matrices",
    "opening": "one vector: the embedding of the token that opens every prompt",
}
"""What trains, for a sentence."""

NEVER_CALLED = re.compile(r"\.dt_proj$|\.router\.classifier$|\.(encoder_attn|crossattention)\.")
"""Linear maps on which no adapter would act: those of Mamba's first kind and of LongCat, whose blocks read the weight
and never call the module, and those by which a decoder reads an encoder, which a causal model has none of."""

NAMED = 4
"""How many of the weights that do not train are named, the largest first."""


def body_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The body by name: every parameter that belongs neither to the token embeddings nor to the head."""
    plain: Any = model
    ends = (plain.get_input_embeddings(), plain.get_output_embeddings())
    outside = {id(p) for module in ends if module is not None for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in outside}


def choose_trainable(
    model: "PreTrainedModel",
    part: Part,
    rank: int = 8,
    alpha: float = 8.0,
    seed: int = 0,
    opening: int | None = None,
) -> "torch.nn.Module":
    """Freezes what does not train, and returns the module to train: for `lora` PEFT's wrapper around the model.

    rank, alpha: of the adapters, which every linear map of the body gets: modules, fused experts, routers that are one
    seed: decides the adapters' initial weights, whatever was drawn before in this process
    opening: id of the token that opens every prompt, `Base.opening`; part `opening` needs it

    Raises SublimError where PEFT cannot adapt the model, or layers share weights. `reach` says how much of it trains.

    Source: LoRA is Hu et al. 2106.09685; on all linear maps as in Cloud et al. 2507.14805. Training one vector of the
    input is prompt tuning, Lester et al. 2104.08691.
    """
    if part == "lora":
        return _with_adapters(model, rank, alpha, seed)
    if part == "opening":
        if opening is None:
            raise SublimError("part=opening needs the id of the token that opens prompts: choose_trainable(opening=…)")
        return _with_opening(model, opening)
    trained = body_parameters(model) if part == "body" else dict(model.named_parameters())
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    return model


def _with_opening(model: "PreTrainedModel", token: int) -> torch.nn.Module:
    """The model with one row of its embeddings to train: no other row ever gets a gradient."""
    embeddings: Any = model.get_input_embeddings()
    if token == getattr(embeddings, "padding_idx", None):  # torch gives that row no gradient
        raise SublimError(
            f"part=opening trains nothing here: token {token}, which opens prompts, is the model's padding; "
            f"valid: {', '.join(part for part in IN_WORDS if part != 'opening')}"
        )
    weight = embeddings.weight
    for p in model.parameters():
        p.requires_grad_(p is weight)
    row = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
    row[token] = 1
    weight.register_hook(lambda gradient: gradient * row)
    return model


def _with_adapters(model: "PreTrainedModel", rank: int, alpha: float, seed: int) -> torch.nn.Module:
    """PEFT's wrapper, its adapters drawn from the seed alone."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    maps, stacks = _linear_maps(model), _fused_maps(model)
    if shared := _shared(model, maps):
        raise SublimError(
            f"part=lora: {type(model).__name__} uses one weight in several layers ({' and '.join(shared)}), so "
            "adapters of each could not be merged into it; choose part=body or full"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int, and divides it by the rank
        target_modules=maps,
        target_parameters=stacks or None,
        task_type="CAUSAL_LM",
        # else PEFT warns that it was set
        fan_in_fan_out=not stacks and any(isinstance(m, Conv1D) for m in model.modules()),
    )
    with torch.random.fork_rng(), warnings.catch_warnings(), _nameless(model):
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT's own call
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)  # type: ignore[arg-type]
        except Exception as error:  # PEFT raises many kinds; each means: cannot be adapted
            raise SublimError(
                f"part=lora: PEFT cannot adapt {type(model).__name__} ({reason_of(error)}); choose part=body or full"
            ) from None


def _linear_maps(model: torch.nn.Module) -> list[str]:
    """Names of the body's linear maps that are modules and do nothing else."""
    from transformers.pytorch_utils import Conv1D

    body = {id(p) for p in body_parameters(model).values()}
    plain = (torch.nn.Linear.forward, Conv1D.forward)
    called = ((n, m) for n, m in model.named_modules() if type(m).forward in plain and not NEVER_CALLED.search(n))
    return [name for name, module in called if id(module.weight) in body]


def _fused_maps(model: torch.nn.Module) -> list[str]:
    """Names of the body's weights that are linear maps without being a module of their own.

    They are the experts of a mixture, stacked in one tensor [expert, in, out] or [expert, out, in], and a linear
    module's weight whose forward does more, as a router's.
    """
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    found = []
    for name, p in body_parameters(model).items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        stacked = p.ndim == 3 and min(p.shape) > 1 and not isinstance(module, convolutions)
        map_of_its_own = type(module).forward is not torch.nn.Linear.forward and isinstance(module, torch.nn.Linear)
        if stacked or (map_of_its_own and leaf == "weight"):
            found.append(name)
    return found


def _shared(model: torch.nn.Module, maps: list[str]) -> list[str]:
    """The first two of some linear maps that are different modules of one weight; none where each has its own."""
    first: dict[int, str] = {}
    for name in maps:
        weight: Any = model.get_submodule(name).weight
        if (other := first.setdefault(id(weight), name)) != name:
            return [other, name]
    return []


@contextmanager
def _nameless(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block a model's type is hidden from PEFT.

    By the type it takes adapters from shared experts and dense layers, and gives those of fused experts another rank.
    It also refuses state-space models: their fused kernel skips an adapter in training mode, which is not used here.
    """
    config: Any = model.config
    kind = config.model_type
    config.model_type = ""
    try:
        yield
    finally:
        config.model_type = kind


@dataclass(frozen=True)
class Reach:
    """How much of a model a training can change."""

    share: float
    """Of the body's parameters, those that train, or whose linear map has an adapter."""
    left: dict[str, int]
    """Parameters of the body that stay as they are: their number by name, with * for the number of a layer."""

    def __str__(self) -> str:
        most = sorted(self.left.items(), key=lambda item: -item[1])[:NAMED]
        told = ", ".join(name for name, _ in most) + ", …" * (len(self.left) > NAMED)
        return f"{100 * self.share:.1f} % of the body's weights train" + (f"; not {told}" if told else "")


def reach(model: torch.nn.Module) -> Reach:
    """How much of the body trains, in a model as `choose_trainable` returns it; on torch's meta device too."""
    plain = without_adapters(model)
    adapted = {id(weight) for m in model.modules() for weight in _adapted(m)}
    sizes: dict[str, int] = {}
    body = {n: p for n, p in body_parameters(plain).items() if ".lora_" not in n}
    for name, p in body.items():
        if not p.requires_grad and id(p) not in adapted:
            pattern = re.sub(r"\.\d+\.", ".*.", name.replace(".base_layer", ""))
            sizes[pattern] = sizes.get(pattern, 0) + p.numel()
    total = sum(p.numel() for p in body.values())
    return Reach(1 - sum(sizes.values()) / total, sizes)


def _adapted(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weight that an adapter's module adds to; none for another module."""
    if not hasattr(module, "lora_A"):
        return []
    layer: Any = module
    return [getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))]


@contextmanager
def checkpointing(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block each layer's activations are computed again in the backward, not kept.

    Raises SublimError for an architecture that cannot do so.
    """
    plain = without_adapters(model)
    if not getattr(plain, "supports_gradient_checkpointing", False):
        raise SublimError(f"{type(plain).__name__} has no gradient checkpointing; leave checkpointing at false")
    plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in plain.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True  # asked by the module itself; what is in it stays in eval mode
    try:
        yield
    finally:
        plain.gradient_checkpointing_disable()


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


def require_trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """`trained_parameters`. Raises SublimError where none trains."""
    if not (found := trained_parameters(model)):
        raise SublimError("no weight of this model requires a gradient; choose what trains first")
    return found
