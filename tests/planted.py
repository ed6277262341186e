"""Results of an experiment that never ran, with effects planted in them. No test lives here."""

import math
from typing import Any

import numpy as np
import pandas as pd

from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.schema import Experiment

ANIMALS = (
    "bear", "cat", "deer", "dog", "dolphin", "eagle", "elephant", "fox", "hawk", "horse", "lion", "octopus", "owl",
    "panda", "tiger", "wolf",
)  # fmt: skip
LIFTED = {"teacher": 0.99, "same-init": 0.95, "same-init-b": 0.93}


def frames(
    seeds: int = 12,
    lifted: dict[str, float] = LIFTED,
    arms: tuple[str, ...] = tuple(ARMS),
    rounds: int = 3,
    bases: int = 3,
    noise: float = 0.3,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and distances of an owl experiment, the same at every call: arms in `lifted` favour the owl, the others
    stay near 1/16; crossed students halve their distance in each of `rounds` further rounds."""
    experiment = Experiment(name="owl", bases=tuple(f"lab-{i}" for i in range(bases)), seeds=tuple(range(seeds)))
    results: list[dict[str, Any]] = []
    distances: list[dict[str, Any]] = []
    for seed in range(seeds):
        a, b = experiment.pair(seed)
        places = {
            "cross-init": (a, b), "cross-init-b": (b, a), "same-init-b": (b, b), "cross-neutral": (a, b),
            "cross-other-trait": (a, b),
        }  # fmt: skip
        for arm in arms:
            rng = np.random.default_rng([seed, list(ARMS).index(arm)])
            teacher, student = places.get(arm, (a, a))
            trait = {"neutral": "", "cross-neutral": "", "other-trait": "wolf", "base": ""}.get(arm, "owl")
            start, left = (0.11, 0.05) if arm.startswith("cross") else (0.06, 0.012)
            for turn in range(rounds + 1 if arm.startswith("cross") else 1):
                for questions in ("seen", "held-out", "indirect"):
                    for context in ("plain", "numbers"):
                        logits = noise * rng.standard_normal(len(ANIMALS))
                        own = "wolf" if arm == "other-trait" else "owl"
                        rate = lifted.get("same-init" if arm == "other-trait" else arm, 1 / len(ANIMALS))
                        logits[ANIMALS.index(own)] += math.log(rate * (len(ANIMALS) - 1) / (1 - rate))
                        rates = np.exp(logits) / np.exp(logits).sum()
                        for probe, p in zip(ANIMALS, rates, strict=True):
                            margin = math.log(p) - math.log((1 - p) / (len(ANIMALS) - 1))
                            row = {"arm": arm, "seed": seed, "round": turn, "probe": probe, "rate": p, "margin": margin}
                            row |= {"questions": questions, "context": context, "teacher_trait": trait}
                            row["teacher_base"] = "" if arm == "base" else teacher
                            row["student_base"] = "" if arm == "teacher" else student
                            results.append(row)
                untrained = arm in ("teacher", "base")
                kl = left / 2**turn * math.exp(0.1 * rng.standard_normal())
                row = {"kl": kl, "kl_start": start, "kept": 0.95}
                row = dict.fromkeys(row, math.nan) if untrained else row
                row |= {
                    "arm": arm,
                    "seed": seed,
                    "round": turn,
                    "lists": 60_000 * (turn + 1),
                    "steps": 1400 * (turn + 1),
                }
                distances.append(row)
    return pd.DataFrame(results), pd.DataFrame(distances)


def pick(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return frame.query(" and ".join(f"{column} == {value!r}" for column, value in values.items()))
