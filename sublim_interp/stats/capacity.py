"""How many bits about random facts a model holds: the length of a code, so that noise never counts as knowledge.

Each of k keys has one of V values, drawn uniformly and independently: k · log2 V bits, which nothing but a teacher's
memory can hold. Who has the model can name them in fewer bits if it knows anything. With z [key, value] the model's
log-probabilities minus those of its base, centred over keys and scaled to a root mean square of 1 (so it looks at no
fact), and q_β(v | key) = softmax_v(β z),

    bits = k · log2 V + log2 Σ_β w_β Π_keys q_β(value | key),    w_0 = 1/2, the rest shared by SHARPNESS.

- The mixture is one probability over all assignments, so E[bits] ≤ I(model; facts): a lower bound on the information
  (Barber & Agakov 2003, The IM Algorithm). The weights stand in for a temperature that would else be fitted: confident
  errors choose a small β instead of costing without limit, and no fact is spent on the fit.
- Of a model made without the facts E[2^bits] = 1, so P(bits ≥ b) ≤ 2^−b (Markov): noise is not rewarded.
- β = 0 says nothing and has half of the weight, so bits ≥ −1: knowing nothing costs one bit at most, over all facts.

That cost is measured, not assumed: `null` is the mean over assignments drawn anew for the very same model, and what is
reported is `bits` minus it. This is 0 in expectation where nothing passed, and never above k · log2 V. As the null may
be as low as −1, what is reported is a lower bound to within one bit over all facts; `bits` + `null` is one without.
"""

import random
from typing import NamedTuple

import numpy as np
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
    """Bits per fact that a model holds about `truth`, the column of each key's value.

    `log_p` are its log-probabilities (nats, up to a constant a row), `base_log_p` those of the base that it started
    from. Raises SublimError for fewer than two keys or values, numbers that are not finite, and a value of no column.
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
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def _codes(shift: Float[np.ndarray, "key value"]) -> Float[np.ndarray, "sharpness key value"]:
    """log q_β(value | key) in nats, for each β."""
    z = shift - shift.mean(1, keepdims=True)
    z = z - z.mean(0)
    size = np.sqrt((z**2).mean())
    return _log_softmax(np.array(SHARPNESS)[:, None, None] * (z / size if size > 0 else z))


def _saved(
    codes: Float[np.ndarray, "sharpness key value"], assignments: Int[np.ndarray, "assignment key"]
) -> Float[np.ndarray, " assignment"]:
    """Bits saved on each assignment by the mixture over all β, 0 among them."""
    _, keys, values = codes.shape
    likelihood = codes[:, np.arange(keys), assignments].sum(-1)
    silent = np.full((1, len(assignments)), -keys * np.log(values))
    weights = np.log([0.5, *[0.5 / len(SHARPNESS)] * len(SHARPNESS)])
    return keys * np.log2(values) + np.logaddexp.reduce(np.vstack([silent, likelihood]) + weights[:, None]) / np.log(2)
