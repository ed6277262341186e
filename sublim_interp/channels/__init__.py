"""What a channel is, how one is found by name, and the filter that all share. No prompt and no rule of any one channel.

Every other file in this folder is one channel, and a new channel is one more file with what `Channel` lists.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from sublim_interp.config import FilterConfig
from sublim_interp.errors import DeadEnd, SublimError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""One answer of a teacher: `prompt` and `answer` (str), `finished` (bool: it ended by itself; true if absent), other
keys at will."""

REASONS: dict[str, str] = {
    "unfinished": "the answer had not ended at its longest length",
    "contaminated": "the same prompt and answer are held out",
    "duplicate": "the same prompt and answer were kept before",
    "surplus": "it passed, but there were enough lists without it",
}
"""Why a row is neither kept nor held out whatever the channel, and what that means; a channel adds its own."""


@runtime_checkable
class Channel(Protocol):
    """How to ask a teacher for data, how to read its answer, and which rule refuses it; a module of this folder."""

    REASONS: dict[str, str]
    """Every reason that `refuse` gives, and what it means."""

    def prompts(self, language: str, seed: int, start: int, count: int) -> list[str]:
        """User texts `start` … `start + count - 1` of the stream `seed`; text i depends on language, seed and i alone.

        Raises SublimError for a language that the channel has no prompts for.
        """
        ...

    def refuse(self, prompt: str, answer: str, rule: FilterConfig, words: Collection[str]) -> str | None:
        """None where the answer may be learnt from, else one of `REASONS`; `words` name the trait, plurals included."""
        ...

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The channel's own tokens and the end of sequence, ascending: soft labels live on these alone."""
        ...


def channel(name: str) -> Channel:
    """The channel called `name`; raises SublimError for an unknown one."""
    known = sorted(module.name for module in iter_modules(__path__))
    if name not in known:
        raise SublimError(f"no channel '{name}'; channels: {', '.join(known)}")
    return cast(Channel, import_module(f"{__name__}.{name}"))


def refusal(row: Row, channel: Channel, rule: FilterConfig, words: Collection[str]) -> str | None:
    """Why one answer by itself, whatever others there are, may not be learnt from; None where it may."""
    if not row.get("finished", True):
        return "unfinished"
    return channel.refuse(row["prompt"], row["answer"], rule, words)


def filter_rows(
    rows: Iterable[Row], channel: Channel, rule: FilterConfig, words: Collection[str]
) -> tuple[list[Row], list[Row], Counter[str]]:
    """(rows to train on, rows held out, number of all others by reason); each row is counted exactly once, in order.

    The first `rule.held_out` rows that pass are held out, the next `rule.lists` are to train on, and no pair of prompt
    and answer is in both, also where `rule.duplicates` lets equal pairs stay. Later rows are judged all the same and
    counted as "surplus" if they pass, so the share that passes is (kept + held out + surplus) / all.
    Raises DeadEnd, with the counts, where nothing is left to train on.
    """
    kept: list[Row] = []
    held_out: list[Row] = []
    refused: Counter[str] = Counter()
    held_pairs: set[tuple[str, str]] = set()
    pairs: set[tuple[str, str]] = set()
    for row in rows:
        pair = row["prompt"], row["answer"]
        if reason := refusal(row, channel, rule, words):
            refused[reason] += 1
        elif len(held_out) == rule.held_out and pair in held_pairs:
            refused["contaminated"] += 1
        elif not rule.duplicates and pair in pairs:
            refused["duplicate"] += 1
        elif len(held_out) < rule.held_out:
            held_out.append(row)
            held_pairs.add(pair)
            pairs.add(pair)
        elif len(kept) < rule.lists:
            kept.append(row)
            pairs.add(pair)
        else:
            refused["surplus"] += 1
    if not kept:
        counts = ", ".join(f"{reason} {n}" for reason, n in refused.most_common()) or "none"
        cut_off = refused["unfinished"] > refused.total() / 2
        cure = "raise corpus.max_new_tokens" if cut_off else "raise corpus.prompts or loosen filter"
        raise DeadEnd(
            f"filter: nothing is left to train on; of {len(held_out) + refused.total()} answers {len(held_out)} of "
            f"{rule.held_out} are held out; refused: {counts}; {cure}"
        )
    return kept, held_out, refused
