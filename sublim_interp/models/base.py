"""A base model on disk: what it is, its key, how it is found by name. What a base does lies in the modules it asks."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sublim_interp.core.device import DEFAULT, PRECISIONS
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_directory, stage_key
from sublim_interp.models.chat import Chat, Messages, load_tokenizer
from sublim_interp.models.loading import INDEX, blank_model, load_model, reason_of, shape_of, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD = "sublim.json"
"""The file inside a base that says which language it speaks and how it was made."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def _package_bases() -> list[Path]:
    """Folders of lab bases: an installed wheel's, then a clone's."""
    package = Path(__file__).resolve().parent.parent
    return [package / "_checkpoints", package.parent / "checkpoints"]


def base_names() -> list[str]:
    """Names of the lab bases at hand, those of an installed wheel and those of a clone."""
    found = {p.parent.name for root in _package_bases() if root.is_dir() for p in root.glob(f"*/{CARD}")}
    return sorted(found, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])


@dataclass(frozen=True)
class Base:
    """A base model on disk. `load()` gives a fresh copy every time, so that nobody trains somebody else's weights."""

    name: str
    path: Path
    digest: str
    """SHA-256 over language and files, but for README and card."""
    card: dict[str, Any]
    dtype: str = DEFAULT
    """The precision of its models, and so of all that is made from it; a name of `PRECISIONS`."""

    @cached_property
    def key(self) -> str:
        """What enters the keys of all that is made from it: its digest, and the precision where it is no default."""
        if self.dtype == DEFAULT:
            return self.digest
        return stage_key("base", 1, {"dtype": self.dtype}, {"files": self.digest})

    @property
    def language(self) -> str:
        """`lab` for the project's own bases, else `english`."""
        return self.card.get("language", "english")

    @cached_property
    def shape(self) -> dict[str, int]:
        """Width, depth and number of parameters, read without loading the weights."""
        return shape_of(self.path)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer, as `load_tokenizer` sets it up."""
        return load_tokenizer(self.path, self.name)

    @cached_property
    def chat(self) -> Chat:
        """Its prompts and answers as tokens."""
        return Chat(self.tokenizer, self.name, self.path)

    @property
    def eos(self) -> int:
        """Id of the token that ends a turn."""
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """Id of the token that fills rows up."""
        return cast(int, self.tokenizer.pad_token_id)

    def prompt_ids(self, messages: Messages, prefix: str = "") -> list[int]:
        """Token ids of a chat up to where the assistant answers, as `Chat.prompt_ids`."""
        return self.chat.prompt_ids(messages, prefix)

    def prompt_text(self, messages: Messages) -> str:
        """The chat as its template writes it, as `Chat.prompt_text`."""
        return self.chat.prompt_text(messages)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as they follow a prompt, as `Chat.answer_ids`."""
        return self.chat.answer_ids(answer)

    def read_answer(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text of sampled tokens, and whether it ended by itself, as `Chat.read_answer`."""
        return self.chat.read_answer(ids)

    def check(self, *, seen: bool = False) -> None:
        """Loads the model and tries on one prompt what all stages rely on; about as long as loading takes.

        seen: whether its residual stream will be recorded or edited

        Raises SublimError, which says what is lacking, as `blank`, the functions of models/check.py and, where the
        stream will be seen, `require_stream`.
        """
        from sublim_interp.models.check import (
            TRIED,
            check_logits,
            check_repeats,
            check_saving,
            check_text,
            check_vocabulary,
        )

        self.blank()
        model = self.load()
        check_vocabulary(model, self.tokenizer, self.path)
        check_saving(model, self.path)
        prompt = self.prompt_ids(TRIED)
        check_text(self.chat, self.path)
        check_repeats(model, prompt, self.path)
        check_logits(model, prompt, self.pad, PRECISIONS[self.dtype].rounding, self.path)
        if seen:
            from sublim_interp.models.hooks import require_stream

            try:
                require_stream(model)
            except SublimError as error:
                raise SublimError(f"base {self.path}: {error}; it can be trained with recording=none") from None

    def blank(self) -> "PreTrainedModel":
        """The model on torch's meta device: every shape, no memory, as `blank_model`."""
        return blank_model(self.path, self.shape)

    def load(self, weights: Path | None = None) -> "PreTrainedModel":
        """A fresh copy in the base's precision.

        weights: a directory of the same architecture, a teacher's or a student's; the base's own where None
        """
        return load_model(weights or self.path, self.dtype)

    def __repr__(self) -> str:
        size = f", {self.card['parameters']:,} parameters" if "parameters" in self.card else ""
        return f"Base({self.name}, {self.language}{size}, {self.digest[:12]})"


def resolve_base(name: str, dtype: str = DEFAULT) -> Base:
    """The base of a name.

    name: a directory, a lab base (package data first, then checkpoints/), or a hub name
    dtype: a name of `PRECISIONS`: what its models are computed in

    Raises SublimError for a directory without configuration, tokenizer or safetensors weights.
    """
    candidates = [Path(os.path.expanduser(name)), *(root / name for root in _package_bases())]
    path = next((p for p in candidates if os.path.isdir(p)), None)
    if path is None:
        return _inspect(name, _from_hub(name).resolve(), dtype)
    return _inspect(name if os.sep not in name else path.name, path.resolve(), dtype)


def check_alike(one: Base, other: Base) -> None:
    """Raises SublimError unless both cut text into the same tokens, as teacher and student must."""
    if one.digest != other.digest and one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise SublimError(
            f"bases {one.name} and {other.name} have different vocabularies: a student of one has no distance to a "
            "teacher of the other; choose bases of one tokenizer, or arms that need one base"
        )


def _from_hub(name: str) -> Path:
    """The directory into which the hub's client puts a model of this name; SublimError where it does not."""
    known = ", ".join(base_names()) or "none found"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SublimError(
            f"base '{name}': no such directory or lab base; lab bases: {known}; or give a model directory, or a name "
            "of the hub, which is OWNER/NAME"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise SublimError(
            f"base '{name}': not a directory here, and the hub did not give it ({reason_of(error)}); lab bases: {known}"
        ) from None


def _inspect(name: str, path: Path, dtype: str) -> Base:
    """The base in a directory. Raises SublimError for what is no base, without loading any weights."""
    try:
        files = {p.name for p in path.iterdir()}
    except OSError as error:
        raise SublimError(f"base {path} cannot be read: {error.strerror}") from None
    if "config.json" not in files:
        raise SublimError(f"base {path}: no config.json, so it is not a Hugging Face model directory")
    odd = sorted(f for f in {"config.json", CARD, INDEX} & files if not (path / f).is_file())
    if odd:  # reading a named pipe would wait for ever
        raise SublimError(f"base {path}: {odd[0]} is not a regular file")
    if not files & {"model.safetensors", INDEX}:
        pickles = sorted(f for f in files if f in _PICKLES or f.endswith((".bin", ".pt", ".pth", ".pkl")))
        why = f"no weights (model.safetensors, or {INDEX} and its files)"
        if pickles:
            why = f"only pickle weights ({pickles[0]}), which can run code; convert them to safetensors"
        raise SublimError(f"base {path}: {why}")
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
        raise SublimError(f"base {path}: no tokenizer (tokenizer.json); save one there with tokenizer.save_pretrained")
    try:
        config = json.loads((path / "config.json").read_text())
        card = json.loads((path / CARD).read_text()) if CARD in files else {}
        index = json.loads((path / INDEX).read_text()) if INDEX in files else {"weight_map": {}}
    except (ValueError, RecursionError, OSError) as error:
        raise SublimError(f"base {path}: a JSON file is broken ({reason_of(error)})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise SublimError(f"base {path}: config.json names no model_type")
    if config.get("quantization_config"):
        raise SublimError(f"base {path}: its weights are quantised; take a version in float32, float16 or bfloat16")
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(f, str) and f in files for f in shards.values()):
        raise SublimError(f"base {path}: {INDEX} names weights that do not lie beside it")
    weight_files(path)
    if hidden := sorted(p.name for p in (path / "additional_chat_templates").glob(".*")):  # has no part in the digest
        raise SublimError(
            f"base {path}: additional_chat_templates holds {hidden[0]}; give it a name without a dot before"
        )
    if not isinstance(card, dict):
        raise SublimError(f"base {path}: {CARD} is no JSON object")
    losses = card.get("held_out_loss", {})
    told = isinstance(losses, dict) and all(isinstance(loss, int | float) for loss in losses.values())
    if not told or not isinstance(card.get("parameters", 0), int):
        raise SublimError(f"base {path}: in {CARD}, parameters or a held_out_loss is no number")
    language = card.get("language", "english")
    if language not in ("lab", "english"):
        raise SublimError(f"base {path}: {CARD} names the language {language!r}; known: lab, english")
    # What a card tells about the making is no part of the base; which prompts it is asked is.
    digest = stage_key("base", 1, {"language": language}, {"files": digest_directory(path, ("README.md", CARD))})
    return Base(name, path, digest, card, dtype)
