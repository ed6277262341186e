"""Bases and plain facts about models: where a base lives, how it loads, which weights train, logits at chosen places.

Any Hugging Face causal language model: a directory, a name on the hub, or a lab base by name. Safetensors only, never
remote code. No training, no generation, no hooks here.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxtyping import Bool, Float, Int

from sublim_interp.config import Part
from sublim_interp.errors import SublimError
from sublim_interp.store import digest_directory

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:
    from torch import Tensor  # jaxtyping evaluates the annotations at run time

CARD = "sublim.json"
"""The file inside a base that says which language it speaks and how it was made."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def _package_bases() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [here / "_checkpoints", here.parent / "checkpoints"]


def base_names() -> list[str]:
    """Names of the lab bases at hand, those of an installed wheel and those of a clone."""
    found = {p.parent.name for root in _package_bases() if root.is_dir() for p in root.glob(f"*/{CARD}")}
    return sorted(found)


@dataclass(frozen=True)
class Base:
    """A base model on disk. `load()` gives a fresh copy every time, so that nobody trains somebody else's weights."""

    name: str
    path: Path
    digest: str
    """SHA-256 over the files but the README: this, not the path, enters the store's keys."""
    card: dict[str, Any]

    @property
    def language(self) -> str:
        """`lab` for the project's own bases, else `english`."""
        return self.card.get("language", "english")

    @cached_property
    def shape(self) -> dict[str, int]:
        """Width, depth and number of parameters, read without loading the weights."""
        from safetensors import safe_open
        from transformers import AutoConfig

        parameters = 0
        try:
            config = AutoConfig.from_pretrained(str(self.path), local_files_only=True, trust_remote_code=False)
            for path in self.path.glob("*.safetensors"):
                with safe_open(str(path), "pt") as file:
                    names = list(file.keys())
                    parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        except Exception as error:  # as in load_model
            raise SublimError(f"base {self.path}: configuration or weights are damaged ({_reason(error)})") from None
        text = config.get_text_config()
        return {"d_model": text.hidden_size, "layers": text.num_hidden_layers, "parameters": parameters}

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.path), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # as in load_model
            raise SublimError(f"base {self.path}: its tokenizer cannot be loaded ({_reason(error)})") from None
        if tokenizer.eos_token_id is None:
            raise SublimError(
                f"base {self.name}: its tokenizer has no end-of-sequence token; set eos_token and save it again"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer

    @property
    def eos(self) -> int:
        """Id of the token that ends a turn."""
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """Id of the token that fills rows up."""
        return cast(int, self.tokenizer.pad_token_id)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]], prefix: str = "") -> list[int]:
        """Token ids of a chat up to where the assistant answers; `prefix` is the start of that answer.

        A base without chat template gets plain "User: … Assistant:" text.
        """
        text = self.prompt_text(messages)
        ids = self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"]
        return [*ids, *self.answer_ids(prefix)] if prefix else ids  # type: ignore[return-value]

    def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat as the base's template writes it, up to where the assistant answers."""
        if self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)  # type: ignore[arg-type, return-value]
        names = {"system": "System", "user": "User", "assistant": "Assistant"}
        return "\n".join([*(f"{names[m['role']]}: {m['content']}" for m in messages), "Assistant:"])

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer, as they follow a prompt; without the end of sequence."""
        text = answer if self.tokenizer.chat_template else f" {answer}"
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def load(self, weights: Path | None = None) -> "PreTrainedModel":
        """A fresh float32 copy on the CPU; `weights` is a directory of the same architecture: a teacher, a student."""
        return load_model(weights or self.path)

    def __repr__(self) -> str:
        size = f", {self.card['parameters']:,} parameters" if "parameters" in self.card else ""
        return f"Base({self.name}, {self.language}{size}, {self.digest[:12]})"


def resolve_base(name: str) -> Base:
    """The base called `name`: a directory, a lab base (package data first, then checkpoints/), or a hub name.

    Raises SublimError for a directory without configuration, tokenizer or safetensors weights.
    """
    candidates = [Path(os.path.expanduser(name)), *(root / name for root in _package_bases())]
    path = next((p for p in candidates if p.is_dir()), None)
    if path is None:
        path = _from_hub(name)
    return _inspect(name if os.sep not in name else path.name, path.resolve())


def _from_hub(name: str) -> Path:
    known = ", ".join(base_names()) or "none found"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SublimError(
            f"base '{name}': no such directory or lab base; lab bases: {known}; or give a model directory"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise SublimError(
            f"base '{name}': not a directory here, and the hub did not give it ({_reason(error)}); lab bases: {known}"
        ) from None


def _inspect(name: str, path: Path) -> Base:
    files = {p.name for p in path.iterdir()}
    if "config.json" not in files:
        raise SublimError(f"base {path}: no config.json, so it is not a Hugging Face model directory")
    if not any(f.endswith(".safetensors") for f in files):
        pickles = sorted(f for f in files if f in _PICKLES or f.endswith((".bin", ".pt", ".pth", ".pkl")))
        why = "no weights (*.safetensors)"
        if pickles:
            why = f"only pickle weights ({pickles[0]}), which can run code; convert them to safetensors"
        raise SublimError(f"base {path}: {why}")
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
        raise SublimError(f"base {path}: no tokenizer (tokenizer.json); save one there with tokenizer.save_pretrained")
    try:
        config = json.loads((path / "config.json").read_text())
        card = json.loads((path / CARD).read_text()) if CARD in files else {}
    except (ValueError, UnicodeDecodeError) as error:
        raise SublimError(f"base {path}: a JSON file is broken ({error})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise SublimError(f"base {path}: config.json names no model_type")
    if not isinstance(card, dict):
        raise SublimError(f"base {path}: {CARD} is no JSON object")
    return Base(name, path, digest_directory(path, ignore=("README.md",)), card)


def _reason(error: Exception) -> str:
    """The first line that says anything, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_model(path: Path) -> "PreTrainedModel":
    """A fresh float32 copy of the model in `path`, on the CPU, in eval mode.

    Raises SublimError for files that cannot be read, or that lack some of the model's weights: those would be random.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _quiet():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, in one line
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises whatever its parsers raise; each means: cannot be read
            raise SublimError(f"model {path}: transformers cannot load it ({_reason(error)})") from None
    model, info = loaded
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if lacking:
        raise SublimError(f"model {path}: {len(lacking)} tensors are missing or of another shape, first {lacking[0]}")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


def save_model(model: "PreTrainedModel", directory: Path) -> None:
    """Writes configuration and safetensors weights; the tokenizer stays with the base."""
    with _quiet():
        model.save_pretrained(str(directory), safe_serialization=True)


def choose_trainable(
    model: "PreTrainedModel", part: Part, rank: int = 8, alpha: float = 8.0, seed: int = 0
) -> "torch.nn.Module":
    """Freezes what is not in `part` and returns the module to train; with `lora`, PEFT's wrapper around `model`.

    LoRA is put on every linear map of the body (Hu et al. 2106.09685; all-linear as in Cloud et al. 2507.14805). `seed`
    decides the adapters' initial weights, whatever was drawn before in this process.
    """
    if part == "lora":
        import torch
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(
                model,  # type: ignore[arg-type]
                LoraConfig(
                    r=rank,
                    lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int, and divides it by the rank
                    target_modules="all-linear",
                    task_type="CAUSAL_LM",
                ),
            )
    frozen = set()
    if part == "body":
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        frozen = {id(p) for module in ends if module is not None for p in module.parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) not in frozen)
    return model


def merge_adapters(model: "torch.nn.Module") -> "PreTrainedModel":
    """The plain model again: LoRA adapters are added into the weights they adapt."""
    merge = getattr(model, "merge_and_unload", None)
    return merge() if merge else model  # type: ignore[return-value]


_PLAIN_HEAD = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo2", "phi3"})
"""Architectures whose logits are head(last hidden state) and nothing else (no soft cap, no scale)."""


def logits_at(
    model: "torch.nn.Module", ids: Int[Tensor, "batch position"], where: Bool[Tensor, "batch position"]
) -> Float[Tensor, "chosen vocabulary"]:
    """Next-token logits at the chosen positions only, in row-major order of `where`.

    Rows are padded on the right: a causal model never looks there, so no attention mask is needed. The head runs on the
    chosen positions alone where the architecture allows it, which saves most of its cost on short completions.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if plain.config.model_type in _PLAIN_HEAD:  # type: ignore[union-attr]
        hidden = plain.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator, union-attr]
        return plain.get_output_embeddings()(hidden[where])  # type: ignore[operator, union-attr]
    return plain(input_ids=ids, use_cache=False).logits[where]  # type: ignore[operator]
