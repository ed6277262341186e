"""All cells of a grid with their plans, and the key of its sweep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import stage_key
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.plan import Plan, plan
from sublim_interp.experiments.results import Replicate, frames
from sublim_interp.pipeline.records import Record
from sublim_interp.sweeps import law
from sublim_interp.sweeps.grid import Grid
from sublim_interp.training.recording.settings import Recording

if TYPE_CHECKING:
    import pandas as pd


DOSES = ("bases", "trait", "corpus.prompts", "teacher.optimization.lr")
"""Fields whose values are doses to a law: of strength, of lists, of the base's training."""


VERSIONS = {"": 3, "bases": 4, "traits": 5, "law": 3}
"""By `Grid.matrix`; bumped by hand when the files of such sweeps change."""


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a grid with their plans, known before anything runs."""

    grid: Grid
    cells: tuple[tuple[str, str, Plan], ...]

    @property
    def recording(self) -> Recording:
        """What is recorded of the trainings: as the experiment at the centre says."""
        return self.cells[0][2].recording

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every record of every cell once."""
        return tuple({r.key: r for _, _, p in self.cells for r in p.records}.values())

    def missing(self, store: Store) -> list[Record]:
        """The records that the store does not hold."""
        return [r for r in self.records if r.find(store) is None]

    def without(self, lost: Mapping[str, Exception]) -> "SweepPlan":
        """What is left of it where these evaluations, by key, cannot be had; raises the first error if nothing is."""
        kept = [
            (field, value, replace(p, cells=tuple(c for c in p.cells if c.evaluation.key not in lost)))
            for field, value, p in self.cells
        ]
        cells = tuple((field, value, p) for field, value, p in kept if any(c.arm in p.experiment.arms for c in p.cells))
        if not cells:
            raise next(iter(lost.values()))
        return replace(self, cells=cells)

    def dead_ends(self, lost: Mapping[str, Exception]) -> "pd.DataFrame":
        """One row per field, value, seed and arm whose evaluation is among those that cannot be had, and why."""
        import pandas as pd

        columns = ["field", "value", "seed", "arm", "why"]
        rows = [
            (field, value, c.seed, c.arm, str(lost[c.evaluation.key]))
            for field, value, p in self.cells
            for c in p.cells
            if c.evaluation.key in lost and c.round == 0
        ]
        return pd.DataFrame(rows, columns=columns)

    def table(self, store: Store) -> "pd.DataFrame":
        """One row per field, value, arm and seed: rate and margin on held-out questions, distances; of traits also the
        teacher's base, of a law what `lifts` adds."""
        import pandas as pd

        from sublim_interp.experiments.tables import replicates

        hidden = ("teacher", "base") if self.grid.figure == "matrix" else ("teacher",)
        parts = []
        for field, value, p in self.cells:
            each = replicates(*frames(p, store), p.named.trait)
            each = each.loc[(each["stage"] == "equal steps") & ~each["arm"].isin(hidden)]
            parts.append(each.assign(field=field, value=value, trait=p.named.trait))
        cells = pd.concat(parts, ignore_index=True)
        if self.grid.matrix == "law":
            return self.lifts(cells)
        return cells.assign(base=self._teachers(cells)) if self.grid.matrix == "traits" else cells

    def lifts(self, cells: "pd.DataFrame") -> "pd.DataFrame":
        """The students with their lift over the untouched base, and what a law expects: see `figures.law`."""
        places = ["field", "value", "seed"]
        untouched = cells.loc[cells["arm"] == "base", [*places, "margin"]].rename(columns={"margin": "base_margin"})
        students = self.with_bases(cells.loc[cells["arm"] == "same-init"].merge(untouched, on=places))
        students = students.assign(lift=students["margin"] - students["base_margin"])
        try:
            expected = law.fit(students).predict(students)
        except SublimError:  # what was measured stays; the table says why there is no law
            expected = nan
        return students.assign(expected=expected, unseen=law.left_out(students, list(students["base"])))

    def with_bases(self, cells: "pd.DataFrame") -> "pd.DataFrame":
        """The cells with two more columns: the teacher's base, and its held-out loss on numbers (nats a token), NaN
        where its card does not say."""
        bases = self._teachers(cells)
        losses = {base: _numbers_loss(base) for base in set(bases)}
        return cells.assign(base=bases, base_loss=[losses[base] for base in bases])

    def _teachers(self, cells: "pd.DataFrame") -> list[str]:
        """The teacher's base of each row."""
        named = {(field, value): p.named for field, value, p in self.cells}
        places = zip(cells["field"], cells["value"], cells["seed"], strict=True)
        return [named[field, value].pair(seed)[0] for field, value, seed in places]

    def matrix(self, store: Store) -> "pd.DataFrame":
        """One row per arm, teacher, student (or probe trait) and seed: rate (0 to 1), margin (nats), and lift, which is
        the rate over that of the student's untouched base (NaN where that base is not asked).

        On held-out questions in a plain context, at equal steps.
        """
        import pandas as pd

        by_trait = self.grid.matrix == "traits"
        sides = ("teacher_trait", "probe") if by_trait else ("teacher_base", "student_base")
        rows: list[dict[str, Any]] = []
        untouched: dict[tuple[str, str, int], float] = {}
        for _, _, p in self.cells:
            results, _ = frames(p, store)
            asked = results.query("questions == 'held-out' and context == 'plain' and round == 0")
            for row in asked.to_dict("records"):
                where = row["student_base"], row["probe"], row["seed"]
                if row["arm"] == "base":
                    untouched[where] = row["rate"]
                elif row["arm"] in ("same-init", "cross-init") and (by_trait or row["probe"] == p.named.trait):
                    place = {name: row[side] for name, side in zip(("teacher", "student"), sides, strict=True)}
                    measured = {name: row[name] for name in ("seed", "rate", "margin")}
                    rows.append({"arm": row["arm"], **place, **measured, "where": where})
        lifts = [row["rate"] - untouched.get(row.pop("where"), nan) for row in rows]
        return pd.DataFrame(rows).assign(lift=lifts)

    def by_question(self, store: Store) -> "pd.DataFrame":
        """What each model says about its own cell's trait, question by question: trait, arm, seed, and the columns of
        `Replicate.by_question`."""
        import pandas as pd

        parts = []
        for _, _, p in self.cells:
            for cell in p.cells:
                if cell.round == 0 and cell.arm != "teacher":
                    asked = Replicate(cell, store).by_question("held-out", "indirect")
                    own = asked.loc[asked["probe"] == p.named.trait]
                    parts.append(own.assign(trait=p.named.trait, arm=cell.arm, seed=cell.seed))
        return pd.concat(parts, ignore_index=True)


def plan_grid(g: Grid) -> SweepPlan:
    """Lays out every cell; raises SublimError for a cell that cannot run, or cells to which no law can be fitted."""
    p = SweepPlan(g, tuple((field, value, plan(exp)) for field, value, exp in g.cells()))
    if g.matrix == "law":
        losses = {base: _numbers_loss(base) for _, _, cell in p.cells for base in cell.named.bases}
        if silent := [base for base, loss in losses.items() if isnan(loss)]:
            raise SublimError(f"matrix=law: base {silent[0]} has no card that tells its held-out loss on numbers")
        if len(set(losses.values())) < 3 or any(len(values) < 3 for values in g.axes.values()):
            raise SublimError("matrix=law needs three values or more on each axis, and bases of three different losses")
    return p


def _numbers_loss(base: str) -> float:
    """Held-out loss on numbers, nats a token, as the base's card tells it, or NaN."""
    from sublim_interp.models.base import resolve_base

    return resolve_base(base).card.get("held_out_loss", {}).get("numbers", nan)


def identity(p: SweepPlan) -> tuple[dict[str, Any], dict[str, str]]:
    config = p.grid.model_dump(mode="json", include={"axes", "words", "matrix"})
    inputs = {
        f"{field}={value}/{c.arm}/{c.seed}/{c.round}": c.evaluation.key
        for field, value, cell in p.cells
        for c in cell.cells
    }
    return config, inputs


def sweep_key(p: SweepPlan) -> str:
    """The key that the sweep of a plan has in any store."""
    return stage_key("sweep", VERSIONS[p.grid.matrix], *identity(p))


def find_sweep(p: SweepPlan, store: Store) -> Artifact | None:
    """The finished sweep, if the store holds it."""
    return store.get("sweep", sweep_key(p))
