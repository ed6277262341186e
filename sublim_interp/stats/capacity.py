"""Capacity: how many bits about random facts a model holds, as the length of a code. Noise never counts as knowledge.

**The question.** Each of k keys has one of V values, drawn at random: k · log2 V bits, which only a memory can hold.
Whoever has the model can name these values in fewer bits, if the model knows any of them.

**The code.** Take the model's log-probabilities minus those of its base. Centre them over keys and values, and scale
them to a root mean square of 1: that is z [key, value], and no fact was looked at. A code of sharpness β gives a value
the probability q_β(value | key) = softmax over values of β z. Several β are mixed, half of the weight on β = 0:

    bits = k · log2 V + log2 Σ_β w_β Π_keys q_β(value | key)

**What it guarantees.**

- It is a lower bound on the information: E[bits] ≤ I(model; facts), since the mixture is one probability over all
  assignments. (Barber & Agakov 2003, The IM Algorithm.)
- Confident errors do not cost without limit: they choose a small β. No fact is spent on fitting a temperature.
- Noise is not rewarded: for a model made without the facts, P(bits ≥ b) ≤ 2^−b. (Markov; there E[2^bits] = 1.)
- Knowing nothing costs at most one bit over all facts, since β = 0 has half of the weight.

**The null.** That cost is measured rather than assumed: the same model is scored on assignments drawn anew. What is
reported is `bits` minus their mean. It is 0 in expectation where nothing passed, and never above k · log2 V. As the
null may be as low as −1 bit, what is reported is a lower bound to within one bit over all facts; `bits` + `null` is a
lower bound outright.
"""

import random
from typing import NamedTuple

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Int

from sublim_interp.core.errors import SublimError

SHARPNESS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The β of the code, in units of 1 / root mean square of z."""

ASSIGNMENTS = 1000
"""Random assignments that the null is made of."""


class Bits(NamedTuple):
    """What a model holds, in bits per fact; times the number of facts for the total."""

    bits: float
    """Length that the model saves, less `null`; at most log2 V."""
    null: float
    """Mean of what it saves on random assignments."""
    spread: float
    """Standard deviation of that: the noise of `bits` where nothing passed."""


def bits_held(
    log_p: Float[np.ndarray, "key value"],
    base_log_p: Float[np.ndarray, "key value"],
    truth: Int[np.ndarray, " key"],
    seed: int = 0,
) -> Bits:
    """Bits per fact that a model holds.

    log_p: the model's log-probabilities of each value, in nats, up to a constant a key
    base_log_p: those of the base that it started from
    truth: the column of each key's value
    seed: decides the assignments of the null

    Raises SublimError for fewer than two keys or values, numbers that are not finite, and a value of no column.
    """
    keys, values = log_p.shape
    if min(keys, values) < 2:
        raise SublimError(f"bits_held: {keys} keys of {values} values; two or more of each are needed")
    if not (np.isfinite(log_p).all() and np.isfinite(base_log_p).all()):
        raise SublimError("bits_held: a log-probability is not finite")
    if truth.min() < 0 or truth.max() >= values:
        raise SublimError(f"bits_held: a fact's value is none of the {values} columns, counted from 0")
    codes = _codes(_log_softmax(log_p) - _log_softmax(base_log_p))
    draw = np.random.default_rng(random.Random(f"capacity/{seed}").getrandbits(64))
    drawn = draw.integers(values, size=(ASSIGNMENTS, keys))
    null = _saved(codes, drawn) / keys
    saved = float(_saved(codes, truth[None])[0]) / keys
    return Bits(saved - float(null.mean()), float(null.mean()), float(null.std(ddof=1)))


def _log_softmax(x: Float[np.ndarray, "... value"]) -> Float[np.ndarray, "... value"]:
    """Normalised log-probabilities along the last axis."""
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def _codes(shift: Float[np.ndarray, "key value"]) -> Float[np.ndarray, "sharpness key value"]:
    """log q_β(value | key) in nats, for each β."""
    z = shift - shift.mean(1, keepdims=True)
    z = z - z.mean(0)
    size = np.sqrt((z**2).mean())
    sharpness = rearrange(np.array(SHARPNESS), "sharpness -> sharpness 1 1")
    return _log_softmax(sharpness * (z / size if size > 0 else z))


def _saved(
    codes: Float[np.ndarray, "sharpness key value"], assignments: Int[np.ndarray, "assignment key"]
) -> Float[np.ndarray, " assignment"]:
    """Bits saved on each assignment by the mixture over all β, 0 among them."""
    _, keys, values = codes.shape
    chosen = codes[:, np.arange(keys), assignments]
    likelihood = reduce(chosen, "sharpness assignment key -> sharpness assignment", "sum")
    silent = np.full((1, len(assignments)), -keys * np.log(values))
    weights = np.log([0.5, *[0.5 / len(SHARPNESS)] * len(SHARPNESS)])
    return keys * np.log2(values) + np.logaddexp.reduce(np.vstack([silent, likelihood]) + weights[:, None]) / np.log(2)
