"""Weights from a directory and back: safetensors only, never remote code, nothing random. Shapes without weights."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.device import DEFAULT, compute_device, torch_dtype
from sublim_interp.core.errors import SublimError
from sublim_interp.models.precision import in_precision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

INDEX = "model.safetensors.index.json"
"""The file that names the weights where they lie in several."""

ATTENTION = ("eager", "sdpa")
"""The ways to compute attention that a configuration may ask for."""


def reason_of(error: Exception) -> str:
    """The first line of an error that says anything, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_model(path: Path, dtype: str = DEFAULT, device: str | None = None) -> "PreTrainedModel":
    """A fresh copy of a model, in eval mode and without dropout, which would draw numbers that depend on no seed.

    path: a Hugging Face model directory
    dtype: a name of `PRECISIONS`
    device: torch's name of one, else the one that `compute_device` chooses

    Raises SublimError for files that cannot be read, or that lack some of the weights: those would be random.
    """
    from transformers import AutoModelForCausalLM

    logging.getLogger("transformers.modeling_utils").addFilter(_is_news)
    with _quiet():
        try:
            config = _config(path)
            text = config.get_text_config()
            for name, value in text.to_dict().items():
                if "drop" in name and isinstance(value, float):
                    setattr(text, name, 0.0)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path),
                config=config,
                dtype=torch_dtype(dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, in one line
                output_loading_info=True,
            )
        except SublimError:
            raise
        except Exception as error:  # transformers raises whatever its parsers raise; each means: cannot be read
            raise SublimError(f"model {path}: transformers cannot load it ({reason_of(error)})") from None
    model, info = loaded
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if lacking:
        raise SublimError(f"model {path}: {len(lacking)} tensors are missing or of another shape, first {lacking[0]}")
    return in_precision(model.eval().to(compute_device(device)), dtype)


def save_model(model: "PreTrainedModel", directory: Path) -> None:
    """Writes configuration and safetensors weights; the tokenizer stays with the base."""
    with _quiet():
        model.save_pretrained(str(directory), safe_serialization=True)


def shape_of(path: Path) -> dict[str, int]:
    """Width (`d_model`), depth (`layers`) and number of `parameters`, read without loading the weights.

    Raises SublimError where configuration or weights cannot be read.
    """
    from safetensors import safe_open

    parameters = 0
    try:
        text = _config(path).get_text_config()
        for weights in weight_files(path):
            with safe_open(str(weights), "pt") as file:
                names = list(file.keys())
                parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        shape = {"d_model": text.hidden_size, "layers": text.num_hidden_layers, "parameters": parameters}
        if min(shape.values()) < 1:
            raise ValueError(f"{shape} is no shape of a model")
        return shape
    except SublimError:
        raise
    except Exception as error:  # as in load_model
        raise SublimError(f"base {path}: configuration or weights are damaged ({reason_of(error)})") from None


def blank_model(path: Path, shape: Mapping[str, int]) -> "PreTrainedModel":
    """The model on torch's meta device: every shape, no memory.

    shape: what `shape_of` gives for the directory

    Raises SublimError where configuration and weights are of different models.
    """
    import torch
    from transformers import AutoModelForCausalLM

    held, layers = shape["parameters"], shape["layers"]
    if layers > held:  # to lay out so many would take for ever
        raise SublimError(f"base {path}: config.json says {layers:,} layers, the weights hold {held:,} parameters")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(_config(path), trust_remote_code=False)
        told = sum(p.numel() for p in model.parameters())
    except SublimError:
        raise
    except Exception as error:  # as in load_model
        raise SublimError(f"base {path}: config.json describes no model ({reason_of(error)})") from None
    if told > 1.01 * held:
        raise SublimError(f"base {path}: config.json describes {told:,} parameters, but the weights are {held:,}")
    return model


def _config(path: Path) -> "PreTrainedConfig":
    """The configuration in a directory.

    Raises whatever transformers does, and SublimError for an attention that is not PyTorch's: it may be code of others.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    asked = config._attn_implementation
    if asked not in (None, *ATTENTION):
        raise SublimError(
            f"base {path}: config.json asks for the attention '{asked}', which does not run here; take "
            f"_attn_implementation out of it, or write one of: {', '.join(ATTENTION)}"
        )
    return config


def weight_files(path: Path) -> list[Path]:
    """The files that `transformers` reads the weights from; other formats of the same weights may lie beside them."""
    if (path / INDEX).is_file():
        named = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        return [path / name for name in sorted(named)]
    return [path / "model.safetensors"]


def _is_news(record: logging.LogRecord) -> bool:
    """Not the advice to pass a mask: padding is on the right here, where a causal model never looks."""
    return "attention_mask" not in record.getMessage()


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block transformers shows no progress bars and no warnings."""
    from transformers.utils import logging as says

    enabled, verbosity = says.is_progress_bar_enabled(), says.get_verbosity()
    says.disable_progress_bar()
    says.set_verbosity_error()
    try:
        yield
    finally:
        says.set_verbosity(verbosity)
        if enabled:
            says.enable_progress_bar()
