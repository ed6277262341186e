"""A study: an experiment of another kind than language models, with fields and files of its own; and how it is run."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sublim_interp.core.cards import cards_here
from sublim_interp.core.choices import meant
from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import stage_key
from sublim_interp.core.registry import Registry
from sublim_interp.core.settings import Config, validate
from sublim_interp.core.shelf import Shelf, is_path, mapping_of
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.workers import Task, Watch, run_tasks
from sublim_interp.experiments.catalogue import RESULTS, experiment
from sublim_interp.experiments.cost import REPORT, Needs
from sublim_interp.experiments.executors.pieces import Piece, Progress, Work
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import run_key
from sublim_interp.sweeps.wording import SweepTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Study(Config):
    """One study. A kind of your own derives from this, or from `Piecewise`; an entry point names its class."""

    VERSION: ClassVar[int]
    """In its key; raised by hand when its files change."""
    FIGURE: ClassVar[str]
    """Its figure in the registry, and the name of the figure's files without ending."""
    UNKEYED: ClassVar[frozenset[str]] = frozenset({"name", "about", "study"})
    """Fields that decide no number of its files."""

    name: str
    """Name in the catalogue."""
    about: str = ""
    """The question it asks, in one sentence."""
    study: str
    """Its kind, which decides its other fields."""

    @property
    @abstractmethod
    def replicates(self) -> int:
        """How many replicates it has."""

    def inputs(self) -> dict[str, str]:
        """Digests of what it reads from outside, by role. Raises SublimError where that cannot be read."""
        return {}

    @abstractmethod
    def costs(self) -> dict[str, float]:
        """About how many seconds of one core each piece of its work takes, by name."""

    @abstractmethod
    def tasks(self, directory: Path) -> Sequence[Task]:
        """Its work, pieces named as in `costs`; each keeps what it made in `directory`, and does it no second time."""

    @abstractmethod
    def frames(self, directory: Path) -> "dict[str, pd.DataFrame]":
        """What its CSV files hold, by name without ending, from what its work left in `directory`."""

    @abstractmethod
    def table(self, directory: Path) -> SweepTable:
        """The table of the study whose CSV files lie in `directory`; the first of its lines is the verdict."""

    @abstractmethod
    def draw(self, directory: Path) -> "Figure":
        """The figure of the same study."""

    def identity(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What decides it: its fields, and the digests of its inputs; of an experiment of your own its content."""
        fields = self.model_dump(mode="json", exclude=set(self.UNKEYED)) | {"study": self.study}
        asked = fields.get("experiment")
        if isinstance(asked, str) and is_path(asked):
            fields["experiment"] = Path(asked).stem
            return fields, self.inputs() | {"experiment": run_key(plan(experiment(asked)))}
        return fields, self.inputs()

    @property
    def key(self) -> str:
        """The key that it has in any store."""
        return stage_key("study", self.VERSION, *self.identity())


def _is_study(name: str, kind: type[Study]) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Study)):
        raise SublimError(f"study '{name}' is no class that derives from sublim_interp.sweeps.study.Study")


_OWN = {
    "mnist": "sweeps.studies.mnist:Mnist",
    "theorem": "sweeps.studies.theorem:Theorem",
    "audit": "audit.calibration:Calibration",
    "triggers": "audit.trigger_errors:Triggers",
    "organisms": "audit.organism_rates:Organisms",
    "prediction": "sweeps.studies.prediction:Prediction",
    "inside": "sweeps.studies.inside:Inside",
    "patching": "sweeps.studies.patching:Patched",
    "recovered": "sweeps.studies.recovered:Recovered",
    "entanglement": "sweeps.studies.entanglement:Entanglement",
    "kernel": "sweeps.studies.kernel:Kernel",
    "in-context": "sweeps.studies.in_context:InContext",
}

KINDS: Registry[type[Study]] = Registry(
    "study",
    "sublim_interp.studies",
    {name: f"sublim_interp.{place}" for name, place in _OWN.items()},
    _is_study,
)
"""Every kind of study by what `study` says in its file."""

STUDIES = Shelf("study", "studies", Study, marked_by="study")
"""Every study by name."""


def study_names() -> tuple[str, ...]:
    """Names of all studies at hand."""
    return STUDIES.names()


def study(name: str) -> Study:
    """The study called `name`, or the one in a YAML file, whose files are looked for beside it first.

    Raises SublimError for what it may not hold.
    """
    path = STUDIES.find(name)
    data = mapping_of(path)
    kind = data.get("study")
    if not isinstance(kind, str) or kind not in KINDS:
        raise SublimError(f"{path}: unknown study '{kind}'; {meant(str(kind), KINDS, 'sublim list')}")
    return validate(KINDS[kind], {"name": path.stem, **data}, str(path))


def find_study(s: Study, store: Store) -> Artifact | None:
    """The finished study, if the store holds it."""
    return store.get("study", s.key)


def run_study(s: Study, store: Store, processes: int = 2, watch: Watch = lambda _name, _fraction: None) -> Artifact:
    """Makes what is missing of a study, then its CSV files and its figure. An interrupted one goes on.

    processes: how many pieces of work at once
    watch: told of progress, by a piece's name
    """
    from sublim_interp.core.drawing import save

    here = {**fingerprint(), "threads": 1}  # of the workers
    with store.make("study", s.VERSION, *s.identity(), here) as work:
        if not work.done:
            work.note(name=s.name, study=s.model_dump(mode="json"))
            run_tasks(s.tasks(work.directory), processes, watch, cards=cards_here())
            for name, frame in s.frames(work.directory).items():
                frame.to_csv(work.directory / f"{name}.csv", index=False, lineterminator="\n")
            for ending in ("png", "pdf"):
                save(s.draw(work.directory), work.directory / f"{s.FIGURE}.{ending}")
    return work.artifact


def study_work(s: Study, store: Store, cores: int) -> Work:
    """A study as one piece, for an executor that is left alone: what its own pieces make lies in one folder.

    cores: how many of its own pieces are made at once
    """
    costs = s.costs()
    at_once = max(1, min(cores, len(costs)))
    needs = Needs(sum(costs.values()) / at_once, REPORT * at_once)
    return Work(s.name, s.key, (Piece("study", s.key, _make_study, (s, store.root, at_once), (), needs),))


def _make_study(s: Study, root: Path, processes: int, progress: Progress) -> None:
    costs, done = s.costs(), dict[str, float]()

    def watch(name: str, fraction: float) -> None:
        done[name] = costs[name] * fraction
        progress(sum(done.values()) / sum(costs.values()))

    run_study(s, Store(root), processes, watch)


def published_study(name: str, results: Path = RESULTS) -> Path | None:
    """Where the committed tables of a study lie, or None."""
    return results / name if name in STUDIES and (results / name / "key.txt").exists() else None
