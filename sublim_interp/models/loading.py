"""Weights from a directory and back: safetensors only, never remote code, nothing random."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def reason_of(error: Exception) -> str:
    """The first line that says anything, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_model(path: Path) -> "PreTrainedModel":
    """A fresh float32 copy of the model in `path`, on the CPU, in eval mode, without dropout.

    Dropout would draw random numbers that depend on no seed of the experiment. Raises SublimError for files that
    cannot be read, or that lack some of the model's weights: those would be random.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    logging.getLogger("transformers.modeling_utils").addFilter(_is_news)
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
            text = config.get_text_config()
            for name, value in text.to_dict().items():
                if "drop" in name and isinstance(value, float):
                    setattr(text, name, 0.0)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, in one line
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises whatever its parsers raise; each means: cannot be read
            raise SublimError(f"model {path}: transformers cannot load it ({reason_of(error)})") from None
    model, info = loaded
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if lacking:
        raise SublimError(f"model {path}: {len(lacking)} tensors are missing or of another shape, first {lacking[0]}")
    return model.eval()


def _is_news(record: logging.LogRecord) -> bool:
    """Not the advice to pass a mask: padding is on the right here, where a causal model never looks."""
    return "attention_mask" not in record.getMessage()


@contextmanager
def _quiet() -> Iterator[None]:
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


def save_model(model: "PreTrainedModel", directory: Path) -> None:
    """Writes configuration and safetensors weights; the tokenizer stays with the base."""
    with _quiet():
        model.save_pretrained(str(directory), safe_serialization=True)
