"""The filter that all channels share: kept, held out, refused by reason."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable

from sublim_interp.channels.protocol import Channel
from sublim_interp.channels.rows import Written
from sublim_interp.channels.settings import FilterConfig, rule_of
from sublim_interp.core.errors import DeadEnd, said_of
from sublim_interp.core.settings import Config

log = logging.getLogger(__name__)

REASONS: dict[str, str] = {
    "unfinished": "the answer had not ended at its longest length",
    "unjudged": "the channel's own rule failed on it",
    "contaminated": "the same prompt and answer are held out",
    "duplicate": "the same prompt and answer were kept before",
    "surplus": "it passed, but there were enough lists without it",
}
"""Why an answer is neither kept nor held out, whatever the channel; a channel adds its own reasons."""


def refusal(row: Written, channel: Channel, rule: Config, words: Collection[str]) -> str | None:
    """Why one answer, whatever others there are, may not be learnt from; None where it may.

    rule: the limits of the channel's rule, as `rule_of` gives them
    words: those that name the trait
    """
    if not row.get("finished", True):
        return "unfinished"
    try:
        return channel.refuse(row["prompt"], row["answer"], rule, words)
    except Exception as error:  # of another package's rule, whatever it raises: drawn again the answer is the same
        log.warning("the channel's rule fails on the answer %.60r: %s", row["answer"], said_of(error))
        return "unjudged"


def filter_rows(
    rows: Iterable[Written], channel: Channel, config: FilterConfig, words: Collection[str]
) -> tuple[list[Written], list[Written], Counter[str]]:
    """Shares out what a teacher wrote, in order; each answer counts exactly once.

    words: those that name the trait

    Returns the rows to train on, the rows held out, and the number of all others by reason. The first `config.held_out`
    rows that pass are held out, the next `config.lists` are to train on. No pair of prompt and answer is in both, also
    where `config.duplicates` lets equal pairs stay. Later rows that pass are "surplus", so the share that passes is
    (kept + held out + surplus) / all.
    Raises DeadEnd, with the counts, where nothing is left to train on, and SublimError as `rule_of`.
    """
    limits = rule_of(channel, config)
    kept: list[Written] = []
    held_out: list[Written] = []
    refused: Counter[str] = Counter()
    held_pairs: set[tuple[str, str]] = set()
    pairs: set[tuple[str, str]] = set()
    for row in rows:
        pair = row["prompt"], row["answer"]
        if reason := refusal(row, channel, limits, words):
            refused[reason] += 1
        elif len(held_out) == config.held_out and pair in held_pairs:
            refused["contaminated"] += 1
        elif not config.duplicates and pair in pairs:
            refused["duplicate"] += 1
        elif len(held_out) < config.held_out:
            held_out.append(row)
            held_pairs.add(pair)
            pairs.add(pair)
        elif len(kept) < config.lists:
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
            f"{config.held_out} are held out; refused: {counts}; {cure}"
        )
    return kept, held_out, refused
