"""Many experiments at once: a grid varies the fields of one experiment; what depends on what?

Cells share whatever they have in common, since every stage's result lies under its own key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from sublim_interp.analysis import law
from sublim_interp.config import Config, Experiment, read_mapping, read_yaml
from sublim_interp.errors import DeadEnd, SublimError
from sublim_interp.records import Record
from sublim_interp.runs import RESULTS, Plan, Replicate, execute, experiment, frames, plan
from sublim_interp.store import Artifact, Store, fingerprint, stage_key
from sublim_interp.workers import Watch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_AXIS = {"bases": "bases", "traits": "trait"}
_GRIDS = Path(__file__).resolve().parent / "catalogue" / "grids"
_DOSES = ("bases", "trait", "corpus.prompts", "teacher.optimization.lr")
"""Fields whose values are doses to a law: of strength, of lists, of the base's training."""
VERSIONS = {"": 3, "bases": 4, "traits": 5, "law": 3}
"""By `Grid.matrix`; bumped by hand when the files of such sweeps change."""


class Grid(Config):
    """One experiment, varied along one field after another, or along several together."""

    LATER = frozenset({"matrix"})

    name: str
    """Name in the catalogue."""
    about: str = ""
    """The question it asks, in one sentence."""
    experiment: str = "owl"
    """The experiment at the centre."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields that every cell has otherwise than the experiment."""
    axes: dict[str, tuple[Any, ...]]
    """Field → the values it takes; a value is read as YAML."""
    words: dict[str, tuple[int | float | str, ...]] = Field(default_factory=dict)
    """Field → what tables and figures call its values, where not the values themselves."""
    matrix: Literal["", "bases", "traits", "law"] = ""
    """bases: a student of every base named in axes.bases learns from a teacher of every one; traits: each student of a
    teacher with a trait of axes.trait is asked about all traits of the kind; law: a cell for every combination of the
    axes' values, and a law of the dose that is fitted to all of them."""

    @model_validator(mode="after")
    def _each_value_has_its_word(self) -> "Grid":
        for field, words in self.words.items():
            if len(words) != len(self.axes.get(field, ())):
                raise ValueError(
                    f"words.{field} has {len(words)} entries, axes.{field} {len(self.axes.get(field, ()))}"
                )
        if self.matrix in _AXIS and tuple(self.axes) != (_AXIS[self.matrix],):
            raise ValueError(f"matrix={self.matrix} needs axes.{_AXIS[self.matrix]} and no other axis")
        for field, axis in product(self.change, self.axes):
            values = self.axes[axis]
            part = field.removeprefix(f"{axis}.").partition(".")[0]
            if field.startswith(f"{axis}.") and any(not isinstance(v, dict) or part in v for v in values):
                raise ValueError(f"change.{field} would be lost: axes.{axis} sets it; put it into its values")
        return self

    @property
    def figure(self) -> str:
        """Name of the picture that its sweep ends with, without ending."""
        return {"": "dose", "law": "law"}.get(self.matrix, "matrix")

    def cells(self) -> "Iterator[tuple[str, str, Experiment]]":
        """(field, value in words, experiment) of each cell; SublimError for what the experiment refuses."""
        centre = experiment(self.experiment).set(self.change)
        if self.matrix == "bases":
            yield from _every_pair(centre, self.axes["bases"])
            return
        if self.matrix == "traits" and not {"same-init", "base"} <= set(centre.arms):
            raise SublimError("matrix=traits needs the arms same-init and base: lifts are counted from the base")
        worded = {
            field: list(zip(map(str, self.words.get(field, values)), values, strict=True))
            for field, values in self.axes.items()
        }
        if self.matrix == "law":
            if set(centre.arms) != {"same-init", "base"}:
                raise SublimError("matrix=law needs the arms same-init and base, and no other")
            for cell in product(*worded.values()):
                words, values = zip(*cell, strict=True)
                yield " × ".join(worded), " × ".join(words), centre.set(dict(zip(worded, values, strict=True)))
            return
        for field, values in worded.items():
            for word, value in values:
                yield field, word, centre.set({field: value})


def _every_pair(centre: Experiment, bases: tuple[str, ...]) -> Iterator[tuple[str, str, Experiment]]:
    """A cell for each teacher's and student's base; with more seeds than one a pair would be turned round."""
    if len(centre.seeds) != 1:
        raise SublimError(f"matrix=bases needs one seed, not {len(centre.seeds)}")
    for teacher, student in product(bases, repeat=2):
        own = {"bases": [teacher], "arms": ["same-init", "base"]}
        other = {"bases": [teacher, student], "arms": ["cross-init"]}
        yield "bases", f"{teacher} → {student}", centre.set(own if teacher == student else other)


def grid_names() -> tuple[str, ...]:
    """Names of the catalogue's grids."""
    return tuple(sorted(p.stem for p in _GRIDS.glob("*.yaml")))


def is_grid(name: str) -> bool:
    """Whether `name` is a grid of the catalogue, or a YAML file that holds one: that has `axes`."""
    if not name.endswith((".yaml", ".yml")):
        return name in grid_names()
    return "axes" in read_mapping(Path(name))


def grid(name: str) -> Grid:
    """The catalogue's grid called `name`, or the one in a YAML file of one's own."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Grid, Path(name), name=Path(name).stem)
    if name not in grid_names():
        raise SublimError(f"unknown grid '{name}'; catalogue: {', '.join(grid_names())}; or give a YAML file")
    return read_yaml(Grid, _GRIDS / f"{name}.yaml", name=name)


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a grid with their plans, known before anything runs."""

    grid: Grid
    cells: tuple[tuple[str, str, Plan], ...]

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

        from sublim_interp.report import replicates

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
    from sublim_interp.models import resolve_base

    return resolve_base(base).card.get("held_out_loss", {}).get("numbers", nan)


def _identity(p: SweepPlan) -> tuple[dict[str, Any], dict[str, str]]:
    config = p.grid.model_dump(mode="json", include={"axes", "words", "matrix"})
    inputs = {
        f"{field}={value}/{c.arm}/{c.seed}/{c.round}": c.evaluation.key
        for field, value, cell in p.cells
        for c in cell.cells
    }
    return config, inputs


def sweep_key(p: SweepPlan) -> str:
    """The key that the sweep of a plan has in any store."""
    return stage_key("sweep", VERSIONS[p.grid.matrix], *_identity(p))


def find_sweep(p: SweepPlan, store: Store) -> Artifact | None:
    """The finished sweep, if the store holds it."""
    return store.get("sweep", sweep_key(p))


def run_grid(
    p: SweepPlan,
    store: Store,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str = "default",
) -> Artifact:
    """Makes what is missing, then `cells.csv`, for bases or traits `matrix.csv`, for traits `questions.csv`, and the
    figure as PNG and PDF. A cell that leads nowhere stops no other: `dead_ends.csv` tells of it, where there is one.

    `trace` is that of `runs.run`.
    """
    from sublim_interp.figures import save
    from sublim_interp.recorder import cadence_of

    cadence_of(trace)
    lost: dict[str, Exception] = {}
    if find_sweep(p, store) is None:
        missing = p.missing(store)
        if missing:
            lost = execute(missing, store, processes, watch, trace, skip=(DeadEnd,))
    there = p.without(lost)
    with store.make("sweep", VERSIONS[p.grid.matrix], *_identity(p), fingerprint()) as work:
        if not work.done:
            work.note(name=p.grid.name)
            if not (ends := p.dead_ends(lost)).empty:
                ends.to_csv(work.directory / "dead_ends.csv", index=False)
            there.table(store).to_csv(work.directory / "cells.csv", index=False)
            if p.grid.figure == "matrix":
                there.matrix(store).to_csv(work.directory / "matrix.csv", index=False)
            if p.grid.matrix == "traits":
                there.by_question(store).to_csv(work.directory / "questions.csv", index=False)
            figure = draw(p.grid, work.directory)
            for ending in ("png", "pdf"):
                save(figure, work.directory / f"{p.grid.figure}.{ending}")
    return work.artifact


def draw(g: Grid, directory: Path) -> "Figure":
    """The figure of a sweep of `g` whose tables lie in `directory`."""
    import pandas as pd

    from sublim_interp import figures

    if g.figure == "matrix":
        return figures.matrix(pd.read_csv(directory / "matrix.csv"), g.matrix)
    cells = pd.read_csv(directory / "cells.csv", dtype={"value": str})
    return figures.law(cells) if g.figure == "law" else figures.dose(cells)


def published_sweep(name: str) -> Path | None:
    """Where the committed tables of a grid lie, or None."""
    directory = RESULTS / name
    return directory if (directory / "cells.csv").exists() else None


def published_doses() -> "dict[str, pd.DataFrame]":
    """The published cells of same-init students to which a law of the dose has something to say, by name of the grid.

    Of each student once. Left out are fields that are no dose, and bases that cut numbers into digits: their losses and
    distances are per digit.
    """
    import pandas as pd

    from sublim_interp.models import resolve_base

    parts = []
    for name in grid_names():
        directory = published_sweep(name)
        if directory is None or grid(name).matrix not in ("", "traits"):
            continue
        cells = pd.read_csv(directory / "cells.csv", dtype={"value": str})
        own = cells["field"].isin(_DOSES) & (cells["arm"] == "same-init") & ("bits" not in cells)
        cells = plan_grid(grid(name)).with_bases(cells.loc[own])
        digits = {b for b in set(cells["base"]) if resolve_base(b).card["pretraining"]["tokens"] == "digits"}
        parts.append(cells.loc[~cells["base"].isin(list(digits))].assign(sweep=name))
    students = pd.concat(parts, ignore_index=True).drop_duplicates(["seed", "kl_start", "margin"])
    return {str(name): own for name, own in students.groupby("sweep", sort=False)}
