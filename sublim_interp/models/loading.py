"""Weights from a directory and back: safetensors only, never remote code, nothing random. Shapes without weights."""

import json
import logging
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.device import DEFAULT, compute_device, torch_dtype
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import copy_tree
from sublim_interp.models.precision import in_precision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of the weights, which comes first; and the one that names them where they lie in several."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of numbers that weights are read from; others need scales that lie beside them."""

CARD = "sublim.json"
"""The file inside a base that says which language it speaks and how it was made."""

ADAPTER = "adapter_config.json"
"""What transformers takes for an adapter on top of the model beside it."""

_REDIRECTED = {
    "config.json": ("transformers_weights", "configuration_files"),
    "tokenizer_config.json": ("fast_tokenizer_files",),
}
"""Fields by which one file sends transformers to another, which may lie anywhere."""

ATTENTION = ("eager", "sdpa")
"""The ways to compute attention that a configuration may ask for."""


def reason_of(error: BaseException) -> str:
    """The first line of an error that says anything, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_model(path: Path, dtype: str = DEFAULT, device: str | None = None) -> "PreTrainedModel":
    """A fresh copy of a model, in eval mode and without dropout, which would draw numbers that depend on no seed.

    path: a Hugging Face model directory
    dtype: a name of `PRECISIONS`
    device: torch's name of one, else the one that `compute_device` chooses

    Raises SublimError for files that cannot be read, that lack some of the weights (those would be random), or that
    hold some which the model does not use.
    """
    from transformers import AutoModelForCausalLM

    files = weight_files(path)
    logging.getLogger("transformers.modeling_utils").addFilter(_is_news)
    with _quiet():
        try:
            config = _config(path)
            text = config.get_text_config()
            for name, value in text.to_dict().items():
                if "drop" in name and isinstance(value, float):
                    setattr(text, name, 0.0)
            text.output_attentions = text.output_hidden_states = False  # a configuration with them cannot be saved
            config.return_dict = text.return_dict = True
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
    _check_used(model, files, info["unexpected_keys"], path)
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if lacking:
        raise SublimError(f"model {path}: {len(lacking)} tensors are missing or of another shape, first {lacking[0]}")
    if untied := sorted(model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys):
        raise SublimError(
            f"model {path}: config.json ties {untied[0]} to the embeddings, but the files hold another tensor for it; "
            "set tie_word_embeddings to false, or leave the tensor out"
        )
    return in_precision(model.eval().to(compute_device(device)), dtype)


def save_model(model: "PreTrainedModel", directory: Path) -> None:
    """Writes configuration and safetensors weights; the tokenizer stays with the base."""
    with _quiet():
        model.save_pretrained(str(directory), safe_serialization=True)


def shape_of(path: Path) -> dict[str, int]:
    """What `sizes` gives of the model in a directory, read without loading the weights.

    Raises SublimError where configuration or weights cannot be read.
    """
    from safetensors import safe_open

    shapes, files = [], weight_files(path)
    try:
        text = _config(path).get_text_config()
        for weights in files:
            with safe_open(str(weights), "pt") as file:
                shapes += [file.get_slice(name).get_shape() for name in list(file.keys())]
        shape = sizes(text, shapes)
        if min(shape[name] for name in ("d_model", "layers", "parameters")) < 1:
            raise ValueError(f"{shape} is no shape of a model")
        return shape
    except SublimError:
        raise
    except Exception as error:  # as in load_model
        raise SublimError(f"base {path}: configuration or weights are damaged ({reason_of(error)})") from None


def sizes(text: Any, shapes: Iterable[Sequence[int]]) -> dict[str, int]:
    """Width (`d_model`), depth (`layers`), `vocabulary`, number of `parameters`, and those of the `body` alone.

    text: the configuration of the text model
    shapes: of each of its tensors

    The body is all but embedding and head: these are the matrices with a row for each word.
    """
    words = text.vocab_size
    counts = [(math.prod(shape), len(shape) == 2 and shape[0] == words) for shape in shapes]
    return {
        "d_model": text.hidden_size,
        "layers": text.num_hidden_layers,
        "vocabulary": words,
        "parameters": sum(count for count, _ in counts),
        "body": sum(count for count, of_words in counts if not of_words),
    }


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


def require_finite(model: Any, name: str) -> Any:
    """The model itself, where all its weights are numbers.

    model: loaded
    name: what it is called in an error

    Raises SublimError, with the first such weight, where some are NaN or infinite.
    """
    for weight, values in model.named_parameters():
        if not bool(values.isfinite().all()):
            raise SublimError(f"{name} has weights that are not finite, in {weight}; give a model that is whole")
    return model


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies what lies beside the weights of a model: its tokenizer and its template, no README and no card."""
    for file in source.iterdir():
        weights = file.name == "config.json" or file.suffix == ".safetensors" or file.name.endswith(".index.json")
        if not weights and file.name not in ("README.md", CARD) and not file.name.startswith("."):
            (copy_tree if file.is_dir() else shutil.copy)(file, directory / file.name)


def weight_files(path: Path) -> list[Path]:
    """The files that `transformers` reads the weights from; other formats of the same weights may lie beside them.

    Raises SublimError where another file than these would be read, or one that is no part of a directory's digest.
    """
    if (path / ADAPTER).exists():
        raise SublimError(
            f"model {path}: {ADAPTER} lies there, so an adapter would change the weights; merge it into the model "
            "(merge_and_unload in PEFT) and save that, or take the adapter's files away"
        )
    if shards := sorted(p.name for p in path.glob("shard-*.safetensors")):
        raise SublimError(f"model {path}: {shards[0]} is of a distributed checkpoint; save it with save_pretrained")
    for name, fields in _REDIRECTED.items():
        try:
            told = json.loads((path / name).read_text(encoding="utf-8")) if (path / name).is_file() else {}
        except (ValueError, RecursionError, OSError) as error:
            raise SublimError(f"model {path}: {name} is broken ({reason_of(error)})") from None
        if found := [field for field in fields if isinstance(told, dict) and told.get(field)]:
            raise SublimError(
                f"model {path}: {found[0]} in {name} sends the reader to another file; give that file its usual name, "
                "and take the field away"
            )
    single = (path / SINGLE).is_file()
    if single and not (path / INDEX).exists():
        return [path / SINGLE]
    try:
        named = sorted({*json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()})
    except Exception as error:  # no such file, no JSON, or JSON of another shape
        raise SublimError(f"model {path}: no weights ({SINGLE}, or {INDEX}: {reason_of(error)})") from None
    for name in named:
        # A hidden file has no part in the digest, nor has the README; a file elsewhere has none either.
        plain = isinstance(name, str) and Path(name).name == name and not name.startswith(".")
        if not plain or not name.endswith(".safetensors") or not (path / name).is_file():
            raise SublimError(f"model {path}: {INDEX} names {name}, which is no safetensors file that lies beside it")
    return [path / SINGLE] if single else [path / name for name in named]


def _check_used(model: "PreTrainedModel", files: list[Path], unexpected: Collection[str], path: Path) -> None:
    """Raises SublimError unless each tensor of the files is used once, or is none of a causal model's.

    unexpected: what transformers found no place for, by the names it gives; it leaves out what a type is known to hold
        besides, such as masks, a vision tower, a head for more tokens at once
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    state = model.state_dict()
    sources: dict[str, list[str]] = {}
    unused: list[str] = []
    for name, numbers in _tensors(files, path).items():
        place, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if place not in state and name in state:
            place = name
        if place in unexpected:
            unused.append(name)
        elif place not in state:
            _check_buffer(model, files, name, path)
        elif state[place].is_floating_point() and numbers not in FLOATS:
            raise SublimError(
                f"model {path}: {name} holds {numbers} numbers, quantised; take a version in {', '.join(FLOATS)}"
            )
        elif not converter:  # a converter makes one weight of many on purpose
            sources.setdefault(place, []).append(name)
    if unused or unexpected:
        raise SublimError(
            f"model {path}: {max(len(unused), 1)} tensors of its files have no place in the {model.config.model_type} "
            f"that config.json describes, first {min(unused or unexpected)}; correct config.json, or take them out"
        )
    if twice := [names for names in sources.values() if len(names) > 1]:
        raise SublimError(f"model {path}: its files hold {' and '.join(twice[0])}, two tensors for one weight")


def _tensors(files: list[Path], path: Path) -> dict[str, str]:
    """The tensors in all files, and the type of their numbers. Raises SublimError for a name that lies in two files."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    types: dict[str, str] = {}
    for file in files:
        with safe_open(str(file), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                if name in found:
                    raise SublimError(f"model {path}: {name} lies in {found[name].name} and in {file.name}")
                found[name], types[name] = file, opened.get_slice(name).get_dtype()
    return types


def _check_buffer(model: "PreTrainedModel", files: list[Path], name: str, path: Path) -> None:
    """Raises SublimError where old files keep frequencies of rotary positions that config.json does not give."""
    from safetensors import safe_open

    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if not name.endswith("inv_freq") or rope.get("rope_type", "default") != "default":  # old files keep them unscaled
        return
    own = [b.float().cpu() for n, b in model.named_buffers() if n.endswith("inv_freq")]
    for file in files:
        with safe_open(str(file), "pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                kept = opened.get_tensor(name).float()
                # Old files keep them in half precision at times.
                if not any(b.shape == kept.shape and b.allclose(kept, rtol=1e-2, atol=1e-6) for b in own):
                    raise SublimError(f"model {path}: {name} in its files is not what config.json gives (rope_theta)")


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
