"""Study in-context: teachers' lists in the prompt of an untouched base, which students train on. No student learns.

Before each held-out question stand k turns of a prompt and its kept list. Two arms say the favourite openly instead:
they show whether the base heeds what stands there at all, without which no effect of lists would mean nothing.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from sublim_interp.channels.protocol import as_turns
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import name_once
from sublim_interp.experiments.executors.pieces import Progress
from sublim_interp.experiments.plan import Cell, plan
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.report.wording import capital, count
from sublim_interp.stats.contrasts import paired_difference
from sublim_interp.stats.intervals import Interval, mean_interval
from sublim_interp.sweeps.piecewise import Rows, store_of
from sublim_interp.sweeps.studies.replicated import Replicated
from sublim_interp.sweeps.wording import SweepTable, minus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sublim_interp.core.store import Store
    from sublim_interp.traits.questions import Messages, Question

LISTS = {
    "same-init": "lists of the trait's teacher, from which same-init students learn",
    "neutral": "lists of the teacher without the trait",
    "other-trait": "lists of a teacher of another trait",
}
"""Arms of an experiment whose lists stand before a question."""

CONTROLS = {
    "openly": "the teacher's own questions, each answered with the trait",
    "system": "the neutral lists, behind a system prompt that names the trait",
}
"""What stands there that says the trait openly."""

ARMS = LISTS | CONTROLS
"""Every arm: what stands before a question."""

WITHIN, WITHIN_NATS = 0.03, 0.5
"""Lists whose intervals lie within so much of neutral ones, in rate and in margin, have no effect that counts."""

HEEDED = 0.1
"""The base heeds its context where a control raises the rate by more than this, by its interval."""

_OFTEN = 0.5
"""A base that names any member of the kind less often than this answers something else, whatever it prefers."""

_TEACHERS = ("trait", "other_trait", "bases", "seeds", "dtype", "teacher")
"""Fields of an experiment that decide its teachers."""

_LONG = 64
"""Of so many of the longest texts the tokens are counted, to find the longest turn."""

MEASURES = ("rate", "margin", "any")
"""Columns of `replicates.csv`: how likely the trait is, its margin in nats, and how likely any member of its kind."""


class InContext(Replicated):
    """Asks untouched bases about the trait, behind lists of an experiment's teachers."""

    VERSION, FIGURE = 1, "in-context"

    turns: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] = Field(default=(0, 1, 2, 4, 6), min_length=1)
    """How many lists stand before a question; differences are of the last number. The context must hold them all."""
    draws: int = Field(default=16, ge=1, le=10_000)
    """How often lists are drawn for each question."""

    @model_validator(mode="after")
    def _coherent(self) -> "InContext":
        name_once(self, "turns")
        if list(self.turns) != sorted(self.turns):
            raise ValueError(f"turns={list(self.turns)} must rise")
        if not self.turns[-1]:
            raise ValueError("turns=[0] puts nothing before a question; name a number above 0")
        return self

    def seconds(self) -> float:
        return 30 + 1.5e-3 * self.case.corpus.prompts + 0.07 * self.draws * sum(self.turns)

    @property
    def given(self) -> dict[str, Any]:
        return {"arms": [*LISTS], "student.extra_rounds": 0}

    def measure(self, directory: Path, progress: Progress, *which: int) -> Mapping[str, Rows]:
        (seed,) = which
        return {"replicates": replicate(self, seed, store_of(directory), progress)}

    def table(self, directory: Path) -> SweepTable:
        return account(read_table(directory / "replicates.csv"), self.trained())

    def draw(self, directory: Path) -> "Figure":
        from sublim_interp.report.figures.by_name import FIGURES

        trained = self.trained()
        return FIGURES[self.FIGURE].draw((read_table(directory / "replicates.csv"), trained and trained.rate))

    def trained(self) -> "Trained | None":
        """What published students of the same teachers became; None where that run has others, or is not there."""
        from sublim_interp.experiments.catalogue import RESULTS
        from sublim_interp.sweeps.published import experiment_of

        directory = RESULTS / self.experiment
        if not (directory / "contrasts.csv").exists():
            return None
        published, own = experiment_of(directory), self.case
        if any(getattr(published, name) != getattr(own, name) for name in _TEACHERS):
            return None
        contrasts, summary = (records(read_table(directory / f"{name}.csv")) for name in ("contrasts", "summary"))
        apart = ("same-init − neutral", "equal steps", "replicate")
        found = [row for row in contrasts if (row["contrast"], row["stage"], row["unit"]) == apart]
        arms = {row["arm"]: row for row in summary}
        if not found:
            return None
        rate = found[0]
        return Trained(
            Interval(rate["estimate"], rate["low"], rate["high"], 0.95, rate["n"], "Student t"),
            arms["same-init"]["margin"] - arms["neutral"]["margin"],
            arms["same-init"]["rate"],
        )


class Trained(NamedTuple):
    """Students that were trained on lists of the same teachers.

    difference: of the rate, same-init minus neutral
    margin: the same of the margin, in nats
    rate: of same-init
    """

    difference: Interval
    margin: float
    rate: float


# --- what lists in the prompt do --------------------------------------------------------------------------------------


def account(frame: "pd.DataFrame", trained: Trained | None = None) -> SweepTable:
    """The rate by arm and number of turns, and what the lists do beside what training on them does.

    frame: a row a replicate, arm and number of turns: seed, arm, turns, and `MEASURES`
    trained: what students of the same teachers became
    """
    numbers = sorted(map(int, set(frame["turns"])))
    last, arms = numbers[-1], [arm for arm in ARMS if arm in set(frame["arm"])]
    rows = []
    for arm in arms:
        own = [frame.loc[(frame["arm"] == arm) & (frame["turns"] == k)] for k in numbers]
        rates = [mean_interval(at["rate"].to_list(), bounds=(0, 1)).percent() for at in own]
        margin = minus(mean_interval(own[-1]["margin"].to_list()).plain(2))
        rows.append((arm, *rates, margin, f"{100 * own[-1]['any'].mean():.1f} %"))
    others = [arm for arm in arms if arm != "neutral"]
    found = {(arm, k): difference(frame, arm, "neutral", "rate", k) for arm in others for k in numbers if k}
    nats = {(arm, k): difference(frame, arm, "neutral", "margin", k) for arm, k in found}
    behind = frame.loc[frame["arm"] == "neutral"].groupby("turns")["any"].mean()
    any_member = {k: f"{100 * behind[k]:.1f} %" for k in numbers}
    lines = [verdict(found, nats)]
    if behind[last] < _OFTEN:
        lines.append(
            f"Behind {last} neutral lists the base names any member of the kind in {any_member[last]} only. So there "
            "the rate can hardly move: go by the margin, and by fewer turns."
        )
    if trained:
        lines.append(
            minus(f"Trained on lists of the same teachers, students differ by {trained.difference.points()} and ")
            + minus(f"{trained.margin:.2f} nats.")
        )
    for arm in others:
        rate, margin = found[arm, last].points(), nats[arm, last].plain(2)
        lines.append(f"{capital(arm)} minus neutral at {last} turns: {minus(f'{rate}; margin {margin} nats.')}")
        for k in (k for k in numbers if 0 < k < last):
            lines.append(minus(f"The same at {count(k, 'turn')}: {found[arm, k].points()}."))
    lines += [
        f"Any member of the kind, behind neutral lists: {', '.join(f'{any_member[k]} at {k}' for k in numbers)}.",
        *(f"{capital(arm)}: {ARMS[arm]}." for arm in arms),
    ]
    shown = {f"{arm} minus neutral at {k}/rate": minus(own.points()) for (arm, k), own in found.items()}
    shown |= {f"{arm} minus neutral at {k}/margin": minus(own.plain(2)) for (arm, k), own in nats.items()}
    shown |= {f"neutral at {k}/any member": said for k, said in any_member.items()}
    if trained:
        shown |= {
            "trained minus neutral/rate": minus(trained.difference.points()),
            "trained minus neutral/margin": minus(f"{trained.margin:.2f}"),
        }
    return SweepTable(
        f"How likely an untouched base answers with the trait, behind so many turns: means over "
        f"{count(len(set(frame['seed'])), 'replicate')} with 95 % intervals.",
        ("arm", *(count(k, "turn") for k in numbers), f"margin at {last}, nats", f"any member at {last}"),
        rows,
        lines,
        shown,
    )


def difference(frame: "pd.DataFrame", arm: str, other: str, measure: str, turns: int) -> Interval:
    """Of a measure between two arms at so many turns, paired over replicates, with its 95 % interval.

    frame: as of `account`
    """
    at = frame.loc[frame["turns"] == turns].pivot(index="seed", columns="arm", values=measure)
    return paired_difference(at[arm].to_list(), at[other].to_list()).interval


def verdict(rates: Mapping[tuple[str, int], Interval], nats: Mapping[tuple[str, int], Interval]) -> str:
    """Whether lists in the prompt do what training on them does.

    rates, nats: by arm and number of turns, how far its rate and its margin are from those of neutral lists
    """
    last = max(k for _, k in rates)
    own = [(found, WITHIN) for (arm, _), found in rates.items() if arm == "same-init"]
    own += [(nats["same-init", last], WITHIN_NATS)]
    controls = [arm for arm in CONTROLS if (arm, last) in rates]
    bounds = f"{100 * WITHIN:g} points and {WITHIN_NATS:g} nats"
    if any(abs(i.estimate) > size and (i.low > 0 or i.high < 0) for i, size in own):
        said = "Lists in the prompt have an effect"
    elif not any(rates[arm, last].low > HEEDED for arm in controls):
        said = f"Too weak to tell: behind so many turns no control moves the base by more than {100 * HEEDED:g} points"
    elif all(i.low >= -size and i.high <= size for i, size in own):
        said = f"No effect beyond {bounds} in the prompt"
    else:
        said = f"Too weak to tell: an interval leaves {bounds}"
    beside = " and ".join(f"{arm} by {rates[arm, last].points()}" for arm in controls)
    amount = (
        f"{count(last, 'list')} of the trait's teacher change the rate by {rates['same-init', last].points()} against "
        f"neutral ones, the margin by {nats['same-init', last].plain(2)} nats"
    )
    return minus(f"{said}: {amount}; controls: {beside}.")


# --- one replicate ----------------------------------------------------------------------------------------------------


def replicate(study: InContext, seed: int, store: "Store", progress: Progress) -> list[dict[str, Any]]:
    """Makes what the store lacks of a replicate's lists, and asks its base behind them: a row an arm and turns."""
    from sublim_interp.channels.rows import read_rows
    from sublim_interp.pipeline.make import make
    from sublim_interp.training.recording.settings import PRESETS

    cells = {c.arm: c for c in plan(study.case, store).cells if c.seed == seed}
    asking = Asking(cells["same-init"], store, study.turns, study.draws)
    asking.require_room("openly")  # before anything is made
    for done, arm in enumerate(LISTS, 1):
        student = cells[arm].student
        assert student is not None
        make(student.data, store, recording=PRESETS["none"])
        asking.turns_of[arm] = [as_turns(row) for row in read_rows(student.data.made(store) / "kept.jsonl")]
        asking.require_room(arm)
        progress(0.2 * done)
    if asking.systems:
        asking.turns_of["system"] = asking.turns_of["neutral"]
        asking.require_room("system")
    rows = []
    arms = [arm for arm in ARMS if arm in asking.turns_of]
    for done, arm in enumerate(arms, 1):
        rows += [{"seed": seed, "base": asking.base.name, "arm": arm, **row} for row in asking.answers(arm)]
        progress(0.6 + 0.4 * done / len(arms))
    return rows


class Asking:
    """A base, its questions, and by arm the turns that may stand before them."""

    def __init__(self, cell: Cell, store: "Store", turns: Sequence[int], draws: int) -> None:
        """
        cell: of the student that would learn; its evaluation says what is asked
        store: keeps what a judge's model replied, if a judge is named
        turns: how many stand before a question
        draws: how often they are drawn
        """
        from sublim_interp.traits.protocol import check_own_margin

        self.cell, self.store, self.turns, self.draws = cell, store, turns, draws
        self.evaluation = cell.evaluation
        self.base, trait = self.evaluation.base, self.evaluation.trait
        check_own_margin(trait, self.base)
        self.model: Any = self.base.load()
        self.questions = trait.questions(self.base.language, "held-out")
        self.systems = trait.system_prompts(self.base.language)
        self.turns_of: dict[str, list[Messages]] = {
            "openly": [
                (*q.messages, {"role": "assistant", "content": f"{q.prefix} {answer}".strip()})
                for q, answers in trait.lessons(self.base.language)
                for answer in answers
            ]
        }

    def behind(self, question: "Question", place: int, arm: str, turns: "Sequence[Messages]") -> "Question":
        """A question behind turns, and in the arm system behind one of the trait's system prompts, in turn."""
        system = ({"role": "system", "content": self.systems[place % len(self.systems)]},) if arm == "system" else ()
        return question.behind((*system, *(turn for one in turns for turn in one)))

    def asked(self, arm: str, draw: int) -> "dict[int, list[Question]]":
        """By number of turns every question behind so many: the fewer are the first of the more.

        draw: which draw, from 0 on; the arms neutral and system get the same lists
        """
        source = "neutral" if arm == "system" else arm
        found: dict[int, list[Question]] = {k: [] for k in self.turns}
        for i, question in enumerate(self.questions):
            rng = random.Random(f"in-context/{self.cell.seed}/{source}/{draw}/{i}")
            drawn = rng.choices(self.turns_of[arm], k=self.turns[-1])
            for k in self.turns:
                found[k].append(self.behind(question, i, arm, drawn[:k]))
        return found

    def answers(self, arm: str) -> list[dict[str, Any]]:
        """A row a number of turns: turns, and `MEASURES`, means over questions and draws."""
        import torch

        from sublim_interp.models.precision import casts_kept
        from sublim_interp.traits.judges.protocol import reader

        e = self.evaluation
        judge = reader(e.config.judge, e.config.judging, self.store.root)
        seen: dict[int, list[tuple[float, ...]]] = {k: [] for k in self.turns}
        with torch.no_grad(), casts_kept(self.model):
            for draw in range(self.draws):
                for k, questions in self.asked(arm, draw).items():
                    if k or not seen[k]:  # nothing is drawn where nothing stands there
                        found = e.trait.score(
                            self.model, e.base, questions, e.config.samples, e.seed + draw, e.others, judge
                        )
                        place = found.names.index(e.trait.name)
                        seen[k].append((found.rate[place], found.margin[place], found.rate.sum()))
        return [
            {"turns": k, **dict(zip(MEASURES, map(fmean, zip(*each, strict=True)), strict=True))}
            for k, each in seen.items()
        ]

    def require_room(self, arm: str) -> None:
        """Raises SublimError where the base's context has no room for the most turns, each as long as the longest."""
        from sublim_interp.models.forward import longest_text

        room = longest_text(self.model.config.get_text_config())
        if room is None:
            return
        longest = sorted(self.turns_of[arm], key=lambda turns: -sum(len(t["content"]) for t in turns))[:_LONG]
        bare = max(self._tokens(i, arm, ()) for i in range(len(self.questions)))
        each = max(self._tokens(0, arm, (turns,)) for turns in longest) - self._tokens(0, arm, ())
        if bare + self.turns[-1] * each > room:
            raise SublimError(
                f"turns={self.turns[-1]}: no room for so many turns of {arm}: {self.base.name} reads {room} tokens, a "
                f"question takes up to {bare} and each turn up to {each}; give {max(0, room - bare) // each} at most"
            )

    def _tokens(self, place: int, arm: str, turns: "Sequence[Messages]") -> int:
        question = self.behind(self.questions[place], place, arm, turns)
        return len(self.base.prompt_ids(question.messages, question.prefix))
