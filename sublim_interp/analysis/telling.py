"""Can two sets of lists be told apart? Words are counted in half of them, and games are played with the rest."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    import pandas as pd

Lists = Sequence[Mapping[str, Any]]
"""Rows with an `answer`, such as the lists of a replicate."""


def tell_apart(
    first: Lists,
    second: Lists,
    learnt: tuple[Lists, Lists] | None = None,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    games: int = 2_000,
    splits: int = 20,
    seed: int = 0,
) -> "pd.DataFrame":
    """How often a packet of each set is given to the right one, by the words that stand in either: naive Bayes.

    first, second: rows with an `answer`
    learnt: two other sets that the counts come from, such as those of another replicate; half of these where None
    sizes: how many lists a packet has
    games: how many are played for each size
    splits: how many times the first set is divided and played against itself; the null is the least to the most of it
    seed: decides halves and packets

    Returns a row a size: size, won (0 to 1; a tie counts half), null_low, null_high.
    Raises SublimError for sets of fewer than four lists.
    """
    import pandas as pd

    for name, rows in {"first": first, "second": second}.items():
        if len(rows) < 4:
            raise SublimError(f"tell_apart: {name} has {len(rows)} lists; it needs four or more")
    dice = np.random.default_rng(seed)
    count = min(len(first), len(second))

    def played(a: Lists, b: Lists, from_: tuple[Lists, Lists] | None) -> list[float]:
        a, b = ([rows[i] for i in dice.permutation(len(rows))] for rows in (a, b))
        if from_ is None:
            from_, a, b = (a[::2], b[::2]), a[1::2], b[1::2]
        judge = _evidence(*from_)
        ours, theirs = (np.array([judge(row) for row in rows]) for rows in (a, b))
        return [_won(ours, theirs, size, games, dice) for size in sizes]

    won = played(first[:count], second[:count], learnt)
    halves = []
    for _ in range(splits):
        order = dice.permutation(count)
        halves.append(played([first[i] for i in order[::2]], [first[i] for i in order[1::2]], None))
    null = np.array(halves)
    return pd.DataFrame({"size": list(sizes), "won": won, "null_low": null.min(0), "null_high": null.max(0)})


def _evidence(first: Lists, second: Lists) -> Callable[[Mapping[str, Any]], float]:
    """A function row → nats of evidence for the first set. Every word has been seen half a time more than it was."""
    counts = [Counter(word for row in rows for word in row["answer"].split()) for rows in (first, second)]
    words = {*counts[0], *counts[1]}
    totals = [sum(c.values()) + 0.5 * len(words) for c in counts]
    nats = {w: np.log((counts[0][w] + 0.5) / totals[0]) - np.log((counts[1][w] + 0.5) / totals[1]) for w in words}
    return lambda row: float(sum(nats.get(word, 0.0) for word in row["answer"].split()))


def _won(
    first: Float[np.ndarray, " list"],
    second: Float[np.ndarray, " other"],
    size: int,
    games: int,
    dice: np.random.Generator,
) -> float:
    """Share of games in which a packet of the first set has more evidence than one of the second."""
    ours = first[dice.integers(0, len(first), (games, size))].sum(1)
    theirs = second[dice.integers(0, len(second), (games, size))].sum(1)
    return float((ours > theirs).mean() + 0.5 * (ours == theirs).mean())
