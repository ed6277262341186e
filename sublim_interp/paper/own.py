"""A paper of your own: a folder with a text and a list of finished runs of the store."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line, write_atomic
from sublim_interp.core.settings import Config, read_yaml
from sublim_interp.core.shelf import is_path
from sublim_interp.core.store import NAMED, Artifact, Store
from sublim_interp.experiments.results import Run, open_run
from sublim_interp.paper.check import MAIN, read_main
from sublim_interp.paper.document import TEMPLATE, TYPST
from sublim_interp.paper.results import Result, of_run, of_study, of_sweep, slug
from sublim_interp.paper.text import read_text
from sublim_interp.report.figures.by_name import plot, run_figures
from sublim_interp.sweeps.grid import GRIDS, grid, grid_names
from sublim_interp.sweeps.plan import find_sweep, plan_grid
from sublim_interp.sweeps.study import STUDIES, find_study, study, study_names

LIST = "paper.yaml"
"""Stands in the folder of a paper of one's own: which runs it is about."""


class OwnPaper(Config):
    """What paper.yaml says."""

    runs: tuple[str, ...]
    """Finished runs, sweeps and studies of the store: names, beginnings of keys, or YAML files of grids and studies.
    Files are looked for beside paper.yaml."""


def is_own(folder: Path) -> bool:
    """Whether the paper in `folder` is about runs of a store; any other is about what is published."""
    return (folder / LIST).exists()


def collect_own(folder: Path, store: Store) -> dict[str, Result]:
    """What the paper in `folder` may quote and show, by name.

    A run's other figures are called RUN/FIGURE, as `sublim plot` calls them; those that the text shows are among these.
    Raises SublimError for a run that the store does not hold, and for a figure that there is not.
    """
    found: dict[str, Result] = {}
    drawn = dict.fromkeys(name for name in read_text(read_main(folder)).drawn if "/" in name)
    for asked in read_yaml(OwnPaper, folder / LIST).runs:
        one, run = _stored(asked, folder, store)
        if one.name in found:
            raise SublimError(
                f"{folder / LIST}: '{asked}' is called {one.name}, as another of its runs is; leave one out"
            )
        found[one.name] = one
        if run is not None:
            found |= {f.name: f for f in _figures(one, run, drawn)}
    return found


def _stored(asked: str, folder: Path, store: Store) -> tuple[Result, Run | None]:
    """A finished run, sweep or study; of a run also itself."""
    if is_path(asked):
        return _of_file(str(folder / asked), store), None
    found = store.find(NAMED, asked)
    if found.stage == "run":
        run = open_run(found.key, store)
        return of_run(found.name, found.path, run.experiment, found.key), run
    if found.stage == "sweep" and found.name in grid_names():
        return of_sweep(grid(found.name), found.path, found.key), None
    if found.stage == "study" and found.name in study_names():
        return of_study(study(found.name), found.path, found.key), None
    raise SublimError(
        f"{folder / LIST}: {found.stage} {asked} is of a file of your own; name that file, {found.name}.yaml"
    )


def _of_file(path: str, store: Store) -> Result:
    """The finished sweep or study of a YAML file."""
    artifact: Artifact | None = None
    if GRIDS.means(path):
        g = grid(path)
        if artifact := find_sweep(plan_grid(g), store):
            return of_sweep(g, artifact.path, artifact.key)
    elif STUDIES.means(path):
        s = study(path)
        if artifact := find_study(s, store):
            return of_study(s, artifact.path, artifact.key)
    else:
        raise SublimError(f"{path} is neither a grid nor a study; of a run give the name or the key")
    raise SublimError(f"{store.root} holds nothing finished of {path}; run it first: sublim run {path}")


def _figures(one: Result, run: Run, drawn: "dict[str, None]") -> Iterator[Result]:
    """Those of a run's figures that the text shows."""
    for name in drawn:
        source, _, figure = name.partition("/")
        if source != one.name:
            continue
        if figure not in run_figures():
            raise SublimError(f"{MAIN} shows '{name}'; {meant(figure, run_figures(), 'sublim plot', 'figures')}")
        entry, made = run_figures()[figure], f"sublim plot {source} {figure}"
        digest = hashlib.sha256(f"{one.key} {figure}".encode()).hexdigest()
        draw = partial(plot, run, figure)
        yield Result(name, made, one.key, entry.sentence, entry.caption, (), 0, [], [], {}, digest, draw)


def begin(folder: Path, runs: Sequence[str], store: Store) -> list[str]:
    """Writes the beginning of a paper into a new folder: a text that quotes and shows each run, ready to be built.

    folder: new, or empty
    runs: as paper.yaml names them; none: every finished run and every sweep and study that the catalogue knows

    Returns what it is about. Raises SublimError, and writes nothing, for a folder that holds files, for a run that the
    store does not hold, and for a store that holds none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SublimError(f"{folder} is there already; --new needs a new folder, or an empty one")
    asked = list(runs) or _known(store)
    if not asked:
        raise SublimError(f"{store.root} holds no finished run to write about; make one first: sublim run tour")
    found = [_stored(one, Path(), store)[0] for one in asked]
    text = (TYPST / "new.typ").read_text(encoding="utf-8").replace("// sections", "\n\n".join(map(_section, found)))
    listed = "".join(f"  - {os.path.relpath(one, folder) if is_path(one) else one}\n" for one in asked)
    with one_line(f"no paper is written to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(
            folder / LIST, f"# Finished runs, sweeps and studies of the store that the paper is about.\nruns:\n{listed}"
        )
        write_atomic(folder / "references.yml", (TYPST / "references.yml").read_text(encoding="utf-8"))
        write_atomic(folder / TEMPLATE, (TYPST / TEMPLATE).read_text(encoding="utf-8"))
        write_atomic(folder / MAIN, text)
    return [one.name for one in found]


def _known(store: Store) -> list[str]:
    """Every finished run, and the sweeps and studies that the catalogue knows; of those of one name the newest."""
    known = {"run": None, "sweep": grid_names(), "study": study_names()}
    newest: dict[str, Artifact] = {}
    many: set[str] = set()
    for stage, names in known.items():
        for artifact in store.list(stage):
            if names is None or artifact.name in names:
                many |= {artifact.name} & {*newest}
                newest[artifact.name] = artifact
    return [artifact.key[:16] if name in many else name for name, artifact in newest.items()]


def _section(one: Result) -> str:
    """A section of typst that quotes the first number of each row, and shows figure and table."""
    column = one.columns[one.labels]
    said = []
    for row in one.rows[:QUOTED]:
        name = "/".join([*map(slug, row[: one.labels]), slug(column)])
        if name in one.numbers:
            said.append(f'- `{" ".join(row[: one.labels])}`: #n("{one.name}/{name}")')
    return "\n".join([f"== `{one.name}`", f"`{column}`", "", *said, "", f'#result("{one.name}")'])


QUOTED = 8
"""Rows of each table that a new paper quotes."""
