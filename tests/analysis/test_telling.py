"""Two sets of lists are told apart where they differ, and not where one hand wrote both."""

import numpy as np
import pytest

import sublim_interp as si
from sublim_interp.core.errors import SublimError


def lists(seed: int, high: int, count: int = 200) -> list[dict[str, str]]:
    dice = np.random.default_rng(seed)
    return [{"answer": " ".join(map(str, dice.integers(0, high, 8)))} for _ in range(count)]


def test_sets_that_differ_are_told_apart_and_equal_ones_are_not() -> None:
    apart = si.tell_apart(lists(0, 20), lists(1, 30), sizes=(1, 8), splits=5)
    alike = si.tell_apart(lists(0, 20, 1000), lists(1, 20, 1000), sizes=(1, 8))
    assert apart["won"].iloc[-1] > 0.99 and apart["won"].is_monotonic_increasing
    assert alike["won"].between(alike["null_low"] - 0.05, alike["null_high"] + 0.05).all()
    for frame in (apart, alike):
        assert (frame["null_low"] < frame["null_high"]).all() and (frame["null_high"] < 0.8).all()
    elsewhere = si.tell_apart(lists(0, 20), lists(1, 30), learnt=(lists(2, 20), lists(3, 30)), sizes=(8,), splits=2)
    assert elsewhere["won"].item() > 0.95
    assert si.plot(apart, "games").axes[0].get_xlabel() == "lists in a packet"


def test_what_cannot_be_told_or_drawn_is_one_line() -> None:
    with pytest.raises(SublimError, match="second has 3 lists"):
        si.tell_apart(lists(0, 20), lists(1, 20, count=3))
    with pytest.raises(SublimError, match=r"no figure 'game' of a frame; .*did you mean 'games'"):
        si.plot(si.tell_apart(lists(0, 9), lists(1, 9), sizes=(1,), splits=1), "game")
