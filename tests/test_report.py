"""The report says what the frames hold: numbers against hand computation, words against numbers, files against bytes."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sublim_interp import report
from sublim_interp.config import Experiment
from sublim_interp.errors import SublimError
from sublim_interp.figures import ARMS

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
    experiment = Experiment(bases=tuple(f"lab-{i}" for i in range(bases)), seeds=tuple(range(seeds)))
    results: list[dict[str, Any]] = []
    distances: list[dict[str, Any]] = []
    for seed in range(seeds):
        a, b = experiment.pair(seed)
        places = {"cross-init": (a, b), "cross-init-b": (b, a), "same-init-b": (b, b)}
        for arm in arms:
            rng = np.random.default_rng([seed, list(ARMS).index(arm)])
            teacher, student = places.get(arm, (a, a))
            trait = {"neutral": "", "other-trait": "wolf", "base": ""}.get(arm, "owl")
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
                            results.append(dict(
                                arm=arm, seed=seed, round=turn, teacher_base="" if arm == "base" else teacher,
                                student_base="" if arm == "teacher" else student, teacher_trait=trait, probe=probe,
                                questions=questions, context=context, rate=p, margin=margin,
                            ))  # fmt: skip
                untrained = arm in ("teacher", "base")
                distances.append(dict(
                    arm=arm, seed=seed, round=turn,
                    kl=math.nan if untrained else left / 2**turn * math.exp(0.1 * rng.standard_normal()),
                    kl_start=math.nan if untrained else start, kept=math.nan if untrained else 0.95,
                    lists=60_000 * (turn + 1), steps=1400 * (turn + 1),
                ))  # fmt: skip
    return pd.DataFrame(results), pd.DataFrame(distances)
