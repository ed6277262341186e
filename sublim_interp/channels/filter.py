"""The filter that all channels share: kept, held out, refused by reason."""

from collections import Counter
from collections.abc import Collection, Iterable

from sublim_interp.channels.protocol import Channel
from sublim_interp.channels.rows import Row
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import DeadEnd

REASONS: dict[str, str] = {
    "unfinished": "the answer had not ended at its longest length",
    "contaminated": "the same prompt and answer are held out",
    "duplicate": "the same prompt and answer were kept before",
    "surplus": "it passed, but there were enough lists without it",
}
"""Why a row is neither kept nor held out whatever the channel, and what that means; a channel adds its own."""


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
