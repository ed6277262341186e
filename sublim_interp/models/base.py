"""A base model on disk: where it lives, its digest, its card, what it must be able to do."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_directory, stage_key
from sublim_interp.models.chat import MARK, NEXT_TURN, apply_template, turn_end
from sublim_interp.models.forward import logits_at
from sublim_interp.models.loading import load_model, reason_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


CARD = "sublim.json"
"""The file inside a base that says which language it speaks and how it was made."""


_INDEX = "model.safetensors.index.json"


_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def _package_bases() -> list[Path]:
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
    """SHA-256 over language and files, but for README and card: this, not the path, enters the store's keys."""
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
            text = config.get_text_config()
            for path in _weight_files(self.path):
                with safe_open(str(path), "pt") as file:
                    names = list(file.keys())
                    parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
            shape = {"d_model": text.hidden_size, "layers": text.num_hidden_layers, "parameters": parameters}
            if min(shape.values()) < 1:
                raise ValueError(f"{shape} is no shape of a model")
            return shape
        except Exception as error:  # as in load_model
            raise SublimError(f"base {self.path}: configuration or weights are damaged ({reason_of(error)})") from None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.path), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # as in load_model
            raise SublimError(f"base {self.path}: its tokenizer cannot be loaded ({reason_of(error)})") from None
        end = turn_end(tokenizer)
        if end is not None:
            tokenizer.eos_token = end
        if tokenizer.eos_token_id is None:
            raise SublimError(
                f"base {self.name}: its tokenizer has no end-of-sequence token; set eos_token and save it again"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        tokenizer.clean_up_tokenization_spaces = False  # it would take the space before a comma away
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

        Raises SublimError where the base's chat template refuses the chat.
        """
        text = self.prompt_text(messages)
        ids = self._ids(text, special=not self.tokenizer.chat_template)
        if not self.tokenizer.chat_template and ids and ids[-1] == self.eos:  # some tokenizers end every text
            ids = ids[:-1]
        return [*ids, *self.answer_ids(prefix)] if prefix else ids

    def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat as the base's template writes it, up to where the assistant answers.

        A template that refuses a system prompt, or leaves it out, gets it as the beginning of the user's turn, as Gemma
        is asked. A base without chat template gets plain "User: … Assistant:" text. Raises SublimError as `prompt_ids`.
        """
        if not self.tokenizer.chat_template:
            names = {"system": "System", "user": "User", "assistant": "Assistant"}
            return "\n".join([*(f"{names[m['role']]}: {m['content']}" for m in messages), "Assistant:"])
        text, reason = self._render(messages)
        if reason and messages[0]["role"] == "system":
            system, user, *rest = messages
            text, reason = self._render([{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest])
        if reason:
            raise SublimError(f"base {self.name}: its chat template cannot write this chat ({reason})")
        return text

    def _render(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
        """The chat in the template's words, and why it is not all there; "" if it is."""
        try:
            text = apply_template(self.tokenizer, messages, add_generation_prompt=True)
        except Exception as error:  # whatever the template raises, and Jinja about the template
            return "", reason_of(error)
        lost = next((m["role"] for m in messages if m["content"].strip() not in text), None)
        return text, f"it leaves out the {lost}'s turn" if lost else ""

    @cached_property
    def _opening(self) -> tuple[str, list[int]]:
        """What every prompt ends with, and its ids."""
        text = self.prompt_text([{"role": "user", "content": MARK}]).rpartition(MARK)[2]
        return text, self._ids(text)

    def _ids(self, text: str, special: bool = False) -> list[int]:
        try:
            return cast(list[int], self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # the tokenizers library raises bare ones
            raise SublimError(f"base {self.path}: its tokenizer cannot read text ({reason_of(error)})") from None

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as they follow a prompt; without the end of sequence."""
        text = answer if self.tokenizer.chat_template else f" {answer}"
        # Behind the prompt's own end: alone, SentencePiece would begin the text with a space.
        opening, before = self._opening
        ids = self._ids(opening + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._ids(text)

    def read_answer(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text of sampled tokens, and whether it ended by itself.

        Only the final end of sequence is left out: any other control token stays in the text, for a filter to refuse.
        """
        finished = bool(ids) and ids[-1] == self.eos
        text = cast(str, self.tokenizer.decode(list(ids[:-1] if finished else ids), skip_special_tokens=False))
        if not self.tokenizer.chat_template and NEXT_TURN in text:
            text, finished = text.partition(NEXT_TURN)[0], True
        return text.strip(), finished

    def check(self) -> None:
        """Loads the model and tries on one prompt what all stages rely on; about as long as loading takes.

        Raises SublimError, which says what is lacking, where a token's logits depend on later tokens or on padding,
        where the model keeps no key-value cache or the cache gives other logits, or where the tokenizer has words that
        the model has no embedding for.
        """
        self.blank()
        model = self.load()
        rows = cast(Any, model.get_input_embeddings()).weight.shape[0]
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        used = {*self.tokenizer.get_vocab().values()} - added | {self.eos, self.pad}
        if max(used) >= rows:
            raise SublimError(
                f"base {self.path}: the tokenizer's ids go up to {max(used)}, but the model has embeddings for {rows} "
                "tokens: they do not belong together"
            )
        try:
            batch, alone, last = self._try_out(model)
        except Exception as error:  # of an architecture that nobody has seen here, it may be anything
            raise SublimError(f"base {self.path}: it loads, but does not run ({reason_of(error)})") from None
        if not bool(alone.isfinite().all()):
            raise SublimError(f"base {self.path}: its logits are not all numbers; the weights are damaged")
        near = 1e-3 * float(alone.std())
        if float((batch - alone[: len(batch)]).abs().max()) > near:
            raise SublimError(
                f"base {self.path}: a token's logits depend on later tokens or on padding, so its architecture "
                f"({model.config.model_type}) is no causal language model"
            )
        if float((last - alone[-1]).abs().max()) > near:
            raise SublimError(
                f"base {self.path}: with its key-value cache its architecture ({model.config.model_type}) gives other "
                "logits than without, so its samples would not be its own"
            )

    def _try_out(self, model: Any) -> "tuple[Tensor, Tensor, Tensor]":
        """Logits of half a prompt, padded and beside the whole; of the whole alone; of its last token by the cache."""
        import torch

        whole = self.prompt_ids([{"role": "user", "content": "1, 2, 3"}])
        half = whole[: len(whole) // 2 + 1]
        ids = torch.tensor([whole, half + [self.pad] * (len(whole) - len(half))])
        where = torch.arange(len(whole)) < torch.tensor([[len(whole)], [len(half)]])
        with torch.no_grad():
            batch = logits_at(model, ids, where)[len(whole) :]
            alone = model(input_ids=ids[:1], use_cache=False).logits[0]
            cache = getattr(model(input_ids=ids[:1, :-1], use_cache=True), "past_key_values", None)
            if cache is None:
                raise SublimError(f"{model.config.model_type} keeps no key-value cache, which sampling needs")
            last = model(input_ids=ids[:1, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        return batch, alone, last

    def blank(self) -> "PreTrainedModel":
        """The model on torch's meta device: every shape, no memory.

        Raises SublimError where configuration and weights are of different models.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        held, layers = self.shape["parameters"], self.shape["layers"]
        if layers > held:  # to lay out so many would take for ever
            raise SublimError(
                f"base {self.path}: config.json says {layers:,} layers, the weights hold {held:,} parameters"
            )
        try:
            config = AutoConfig.from_pretrained(str(self.path), local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            told = sum(p.numel() for p in model.parameters())
        except Exception as error:  # as in load_model
            raise SublimError(f"base {self.path}: config.json describes no model ({reason_of(error)})") from None
        if told > 1.01 * held:
            raise SublimError(
                f"base {self.path}: config.json describes {told:,} parameters, but the weights are {held:,}"
            )
        return model

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
    path = next((p for p in candidates if os.path.isdir(p)), None)
    if path is None:
        return _inspect(name, _from_hub(name).resolve())
    return _inspect(name if os.sep not in name else path.name, path.resolve())


def check_alike(one: Base, other: Base) -> None:
    """Raises SublimError unless both cut text into the same tokens, as teacher and student must."""
    if one.digest != other.digest and one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise SublimError(
            f"bases {one.name} and {other.name} have different vocabularies: a student of one has no distance to a "
            "teacher of the other; choose bases of one tokenizer, or arms that need one base"
        )


def _from_hub(name: str) -> Path:
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


def _inspect(name: str, path: Path) -> Base:
    try:
        files = {p.name for p in path.iterdir()}
    except OSError as error:
        raise SublimError(f"base {path} cannot be read: {error.strerror}") from None
    if "config.json" not in files:
        raise SublimError(f"base {path}: no config.json, so it is not a Hugging Face model directory")
    odd = sorted(f for f in {"config.json", CARD, _INDEX} & files if not (path / f).is_file())
    if odd:  # reading a named pipe would wait for ever
        raise SublimError(f"base {path}: {odd[0]} is not a regular file")
    if not files & {"model.safetensors", _INDEX}:
        pickles = sorted(f for f in files if f in _PICKLES or f.endswith((".bin", ".pt", ".pth", ".pkl")))
        why = f"no weights (model.safetensors, or {_INDEX} and its files)"
        if pickles:
            why = f"only pickle weights ({pickles[0]}), which can run code; convert them to safetensors"
        raise SublimError(f"base {path}: {why}")
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
        raise SublimError(f"base {path}: no tokenizer (tokenizer.json); save one there with tokenizer.save_pretrained")
    try:
        config = json.loads((path / "config.json").read_text())
        card = json.loads((path / CARD).read_text()) if CARD in files else {}
        index = json.loads((path / _INDEX).read_text()) if _INDEX in files else {"weight_map": {}}
    except (ValueError, RecursionError, OSError) as error:
        raise SublimError(f"base {path}: a JSON file is broken ({reason_of(error)})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise SublimError(f"base {path}: config.json names no model_type")
    if config.get("quantization_config"):
        raise SublimError(f"base {path}: its weights are quantised; take a version in float32, float16 or bfloat16")
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(f, str) and f in files for f in shards.values()):
        raise SublimError(f"base {path}: {_INDEX} names weights that do not lie beside it")
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
    return Base(name, path, digest, card)


def _weight_files(path: Path) -> list[Path]:
    """The files that `transformers` reads the weights from; other formats of the same weights may lie beside them."""
    if (path / _INDEX).is_file():
        named = set(json.loads((path / _INDEX).read_text())["weight_map"].values())
        return [path / name for name in sorted(named)]
    return [path / "model.safetensors"]
