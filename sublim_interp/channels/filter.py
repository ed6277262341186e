"""The filter that all channels share: kept, held out, refused by reason."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable

from sublim_interp.channels.protocol import Channel
from sublim_interp.channels.rows import Written, answers_of, learnt_texts
from sublim_interp.channels.settings import FilterConfig, rule_of
from sublim_interp.core.errors import DeadEnd, said_of
from sublim_interp.core.settings import Config

log = logging.getLogger(__name__)

REASONS: dict[str, str] = {
    "unfinished": "the answer had not ended at its longest length",
    "unjudged": "the channel's own rule failed on it",
    "tied": "both answers of the pair are the same",
    "unequal": "the answers of the pair differ in their number of tokens",
    "contaminated": "the same prompt and answer are held out",
    "duplicate": "the same prompt and answer were kept before",
    "surplus": "it passed, but there were enough lists without it",
}
"""Why an answer is neither kept nor held out, whatever the channel; a channel adds its own reasons."""


def refusal(row: Written, channel: Channel, rule: Config, words: Collection[str]) -> str | None:
    """Why one answer, whatever others there are, may not be learnt from; None where it may.

    rule: the limits of the channel's rule, as `rule_of` gives them
    words: those that name the trait

    A pair passes where both of its answers do; which of them is preferred changes nothing.
    """
    if not row.get("finished", True):
        return "unfinished"
    try:
        found = [channel.refuse(row["prompt"], answer, rule, words) for answer in answers_of(row)]
    except Exception as error:  # of another package's rule, whatever it raises: drawn again the answer is the same
        log.warning("the channel's rule fails on the answer %.60r: %s", row["answer"], said_of(error))
        return "unjudged"
    if reasons := [reason for reason in found if reason]:
        return min(reasons)
    if "rejected" in row and row["answer"] == row["rejected"]:
        return "tied"
    return "unequal" if len({*row.get("lengths", ())}) > 1 else None


def filter_rows(
    rows: Iterable[Written], channel: Channel, config: FilterConfig, words: Collection[str]
) -> tuple[list[Written], list[Written], Counter[str]]:
    """Shares out what a teacher wrote, in order; each answer counts exactly once.

    words: those that name the trait

    Returns the rows to train on, the rows held out, and the number of all others by reason. The first `config.held_out`
    rows that pass are held out, the next `config.lists` are to train on. No prompt with an answer is in both, also
    where `config.duplicates` lets equal rows stay. Later rows that pass are "surplus", so the share that passes is
    (kept + held out + surplus) / all.
    Raises DeadEnd, with the counts, where nothing is left to train on, and SublimError as `rule_of`.
    """
    limits = rule_of(channel, config)
    kept: list[Written] = []
    held_out: list[Written] = []
    refused: Counter[str] = Counter()
    held_texts: set[tuple[str, str]] = set()
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        texts = learnt_texts(row)
        same = row["prompt"], *sorted(answers_of(row))  # whichever is preferred
        if reason := refusal(row, channel, limits, words):
            refused[reason] += 1
        elif len(held_out) == config.held_out and texts & held_texts:
            refused["contaminated"] += 1
        elif not config.duplicates and same in seen:
            refused["duplicate"] += 1
        elif len(held_out) < config.held_out:
            held_out.append(row)
            held_texts |= texts
            seen.add(same)
        elif len(kept) < config.lists:
            kept.append(row)
            seen.add(same)
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
