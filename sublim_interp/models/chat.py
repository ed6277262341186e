"""Chats: token ids of a prompt and its answer by a base's own template, and text from sampled tokens.

A base without chat template gets plain "User: … Assistant:" text.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sublim_interp.core.bounded import bounded
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import sha256_of
from sublim_interp.core.randomness import python_seeded
from sublim_interp.models.loading import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "heron"
"""A word that no template holds: where it comes out shows where a template puts a turn."""

NEXT_TURN = "\nUser:"
"""Where a base without chat template begins to write the user's next turn, its answer has ended."""

Messages = Sequence[Mapping[str, str]]
"""Turns of a chat, each with `role` (system, user, assistant) and `content`."""


_SHORT = ({"role": "user", "content": "?"}, {"role": "assistant", "content": MARK})


class Chat:
    """Prompts and answers of one base as tokens, and back."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", name: str, path: Path) -> None:
        """`name` and `path` are the base's, for errors."""
        self.tokenizer, self._name, self._path = tokenizer, name, path

    def prompt_ids(self, messages: Messages, prefix: str = "") -> list[int]:
        """Token ids of a chat up to where the assistant answers, then of `prefix`, the start of that answer.

        Raises SublimError where the template refuses the chat.
        """
        text = self.prompt_text(messages)
        plain = not self.tokenizer.chat_template
        ids = self._ids(text, special=plain)
        if plain and ids and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers end every text
            ids = ids[:-1]
        return [*ids, *self.answer_ids(prefix)] if prefix else ids

    def prompt_text(self, messages: Messages) -> str:
        """A chat as the template writes it, up to where the assistant answers.

        A template that refuses a system prompt, or leaves it out, gets it as the beginning of the user's turn, as Gemma
        is asked. Raises SublimError where the template refuses the chat.
        """
        if not self.tokenizer.chat_template:
            names = {"system": "System", "user": "User", "assistant": "Assistant"}
            return "\n".join([*(f"{names[m['role']]}: {m['content']}" for m in messages), "Assistant:"])
        text, reason = self._written(messages)
        if reason and messages[0]["role"] == "system":
            system, user, *rest = messages
            text, reason = self._written([{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest])
        if reason:
            raise SublimError(f"base {self._name}: its chat template cannot write this chat ({reason})")
        return text

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as they follow a prompt, without the end of sequence."""
        text = f"{self._gap}{answer}"
        # Behind the prompt's own end: alone, SentencePiece would begin the text with a space.
        opening, before = self._opening
        ids = self._ids(opening + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._ids(text)

    def read_answer(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text of sampled tokens, and whether it ended by itself.

        Only the final end of sequence is left out: any other control token stays in the text, for a filter to refuse.
        """
        finished = bool(ids) and ids[-1] == self.tokenizer.eos_token_id
        text = cast(str, self.tokenizer.decode(list(ids[:-1] if finished else ids), skip_special_tokens=False))
        if not self.tokenizer.chat_template and NEXT_TURN in text:
            text, finished = text.partition(NEXT_TURN)[0], True
        return text.strip(), finished

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, control tokens among them."""
        return [cast(str, self.tokenizer.decode([int(i)], skip_special_tokens=False)) for i in ids]

    def require_known(self, text: str) -> None:
        """Raises SublimError, with the words that are meant, where the tokenizer has no token for a word of a text."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in self._ids(text):
            return
        words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", text))
        odd = [word for word in words if unknown in self._ids(word)] or [text]
        said = ", ".join(map(repr, odd[:3]))
        raise SublimError(f"base {self._name} does not know {said}; {meant(odd[0], self.tokenizer.get_vocab())}")

    def _written(self, messages: Messages) -> tuple[str, str]:
        """The chat in the template's words, and why it is not all there; "" if it is."""
        try:
            text = _apply_template(self.tokenizer, messages, add_generation_prompt=True)
        except Exception as error:  # whatever the template raises, and Jinja about the template
            return "", reason_of(error)
        lost = next((m["role"] for m in messages if m["content"].strip() not in text), None)
        return text, f"it leaves out the {lost}'s turn" if lost else ""

    @cached_property
    def _opening(self) -> tuple[str, list[int]]:
        """What every prompt ends with, and its ids."""
        text = self.prompt_text([{"role": "user", "content": MARK}]).rpartition(MARK)[2]
        return text, self._ids(text)

    @cached_property
    def _gap(self) -> str:
        """What stands between a prompt and its answer: the space that Mistral's template writes, else nothing.

        The model writes it by itself, so it is no part of the prompt; `read_answer` takes it away.
        """
        if not self.tokenizer.chat_template:
            return " "
        asked = [{"role": "user", "content": MARK}]
        try:
            whole = _apply_template(
                self.tokenizer, [*asked, {"role": "assistant", "content": MARK}], add_generation_prompt=False
            )
        except Exception:  # what is wrong with the template is said when it is asked for a prompt
            return ""
        return " " if whole.startswith(f"{self.prompt_text(asked)} {MARK}") else ""

    def _ids(self, text: str, special: bool = False) -> list[int]:
        try:
            return cast(list[int], self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except BaseException as error:  # the tokenizers library raises bare ones, and Rust's panics are no Exception
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise SublimError(f"base {self._path}: its tokenizer cannot read text ({reason_of(error)})") from None


def load_tokenizer(path: Path, name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in a directory, its end of sequence the token that ends an answer, padding on the right.

    Of several chat templates it takes the one named "default", as transformers does. Raises SublimError where it cannot
    be loaded, has no end of sequence, or where template or tokenizer take more than `bounded` allows.
    """
    try:
        loader: Any = _tokenizer_class(path)
        tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers raise; each means: cannot be read
        raise SublimError(f"base {path}: its tokenizer cannot be loaded ({reason_of(error)})") from None
    named: Any = tokenizer.chat_template
    if isinstance(named, dict):
        if "default" not in named:
            raise SublimError(f"base {name}: none of its chat templates is named default; it has: {', '.join(named)}")
        tokenizer.chat_template = named["default"]
    _require_bounds(tokenizer, path)
    end = turn_end(tokenizer, _named_ends(path))
    if end is not None:
        tokenizer.eos_token = end
    if tokenizer.eos_token_id is None:
        raise SublimError(f"base {name}: its tokenizer has no end-of-sequence token; set eos_token and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.clean_up_tokenization_spaces = False  # it would take the space before a comma away
    _draw_nothing(tokenizer)
    return tokenizer


def _tokenizer_class(path: Path) -> type:
    """What loads the tokenizer of a directory: AutoTokenizer, or the class that it would take.

    AutoTokenizer reads the model's configuration first, and with it a third of transformers: 1.3 s where no model is
    needed. A Llama whose files name the class of any `tokenizer.json`, as the lab's bases do, needs no such search.
    """
    found = []
    for name, field in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "model_type")):
        try:
            about = json.loads((path / name).read_text(encoding="utf-8"))
            found.append("" if "auto_map" in about else about.get(field))
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            found.append("")  # AutoTokenizer says what is wrong
    from transformers import PreTrainedTokenizerFast

    if found == [PreTrainedTokenizerFast.__name__, "llama"]:
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _draw_nothing(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Switches off what makes a tokenizer cut a text differently each time: BPE's dropout, sampling from a unigram."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    for name in ("dropout", "alpha", "nbest_size"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


_MOST = 100_000
"""Characters that a template may make of a short chat."""
_RUNS = tuple(chr(code) * 50 + end for code in (*range(9, 11), *range(32, 127), 0xE9, 0x732B) for end in "!a ")
_HARD = ("a" * 400 + "!", "1" * 400 + ".", " " * 400 + "x", "aA1 ,." * 60, "\n" * 400 + "-", *_RUNS)
"""Texts on which a pattern explodes that tries every way to cut a run: of every character that prompts are made of."""
_in_bounds: set[str] = set()
"""Digests of what was tried in this process and kept within bounds: forks take long where many bases are planned."""


def _require_bounds(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Raises SublimError for a template or tokenizer that takes endlessly long, or makes endlessly much, of little.

    Both are from the model's directory, and a template is a program: they are first run in a fork that can be ended.
    """
    tried = _digest(tokenizer)
    if tried in _in_bounds:
        return

    def templates() -> str:
        system = {"role": "system", "content": "!"}
        for messages, opens in ((_SHORT[:1], True), ((system, *_SHORT[:1]), True), (_SHORT, False)):
            try:
                text = _apply_template(tokenizer, messages, add_generation_prompt=opens)
            except MemoryError:
                raise
            except Exception:  # what is wrong with the template is said when it is asked for a prompt
                continue
            if len(text) > _MOST:
                return f"it writes {len(text):,} characters for a short chat"
        return ""

    def cuts() -> str:
        for text in _HARD:
            tokenizer(text, add_special_tokens=False)
        return ""

    for what, work in (("chat template", templates), ("tokenizer", cuts)):
        if what == "chat template" and not tokenizer.chat_template:
            continue
        try:
            reason = bounded(work)
        except (TimeoutError, MemoryError, ChildProcessError) as error:
            reason = str(error)
        except RuntimeError:  # it is said when it is asked for tokens
            continue
        if reason:
            raise SublimError(f"base {path}: its {what} cannot be used: {reason}")
    if tried:
        _in_bounds.add(tried)


def _digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of all that decides how long template and tokenizer take; "" where a tokenizer does not tell what it does."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    return sha256_of([type(tokenizer).__name__, backend.to_str(), str(tokenizer.chat_template)])


def turn_end(tokenizer: "PreTrainedTokenizerBase", named: Collection[int]) -> str | None:
    """The control token that the chat template writes behind an answer: often not the tokenizer's end of sequence.

    named: ids that the model's configuration calls ends. Where the template writes nothing behind an answer, that of
        them which opens the user's next turn is the end: GLM-4 ends so
    """
    if not tokenizer.chat_template:
        return None
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def behind(*further: Mapping[str, str]) -> list[int]:
        try:
            text = _apply_template(tokenizer, [*_SHORT, *further], add_generation_prompt=False)
        except Exception:  # what is wrong with the template is said when it is asked for a prompt
            return []
        return cast(list[int], tokenizer(text.partition(MARK)[2], add_special_tokens=False)["input_ids"])

    found = next((i for i in behind() if i in special), None)
    if found is None:
        # White space may stand before: a line ends.
        first = next((i for i in behind(_SHORT[0]) if cast(str, tokenizer.decode([i])).strip()), None)
        found = first if first in special and first in named else None
    return None if found is None else cast(str, tokenizer.convert_ids_to_tokens(found))


def _named_ends(path: Path) -> set[int]:
    """Ids of the tokens that a model directory's configurations name as ends of sequence."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        with suppress(OSError, ValueError, AttributeError, RecursionError):  # who loads the model says what is wrong
            about = json.loads((path / name).read_text(encoding="utf-8"))
            for named in (about.get("eos_token_id"), (about.get("text_config") or {}).get("eos_token_id")):
                found |= {i for i in (named if isinstance(named, list) else [named]) if isinstance(i, int)}
    return found


def _apply_template(tokenizer: "PreTrainedTokenizerBase", messages: Messages, add_generation_prompt: bool) -> str:
    """A chat in the words of the tokenizer's template; raises whatever that raises."""
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:  # the day it runs would be in prompts, in no key
        template = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}" + template
    # Jinja's `random` and `lipsum` draw, `map` calls filters by name: seeded, so that a prompt is a function. Seeding
    # takes a third of the time of a short template, so others go without.
    draws = any(name in str(template) for name in ("random", "lipsum", "map"))
    with python_seeded(0) if draws else nullcontext():
        return cast(Any, tokenizer).apply_chat_template(
            list(messages),
            tokenize=False,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,  # a reasoning model's template opens an empty thought; others ignore the word
        )
