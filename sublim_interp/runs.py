"""Runs an experiment: which records its arms need, made in worker processes, read back as one `Run`.

The stages themselves are in pipeline.py, tables and pictures in report.py.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sublim_interp.channels import channel, refusal
from sublim_interp.config import CROSSING, Arm, Experiment, read_yaml, validate
from sublim_interp.errors import SublimError
from sublim_interp.models import Base, check_alike, resolve_base
from sublim_interp.records import Corpus, Evaluation, Filtered, Record, Student, Teacher
from sublim_interp.store import Artifact, Store, changes, fingerprint, stage_key
from sublim_interp.traits import (
    Question,
    Questions,
    check_vocabulary,
    load_trait,
    members_of,
    questions,
    sampled_shares,
    score,
)
from sublim_interp.traits.facts import NAME, Facts, check_language
from sublim_interp.workers import Task, Watch, run_tasks

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    from sublim_interp.analysis.probes import Metric
    from sublim_interp.config import StudentConfig, TeacherConfig
    from sublim_interp.report import Reference
    from sublim_interp.trace import Trace

_CATALOGUE = Path(__file__).resolve().parent / "catalogue"
_EXPERIMENTS = _CATALOGUE / "experiments"
RESULTS = _CATALOGUE / "results"
"""Committed tables: for each experiment its configuration, its run's key, summary, contrasts; for a grid its cells."""


class Route(NamedTuple):
    """An arm in terms of a replicate's pair of bases (0 is A, 1 is B): whose data, which student."""

    favorite: str
    """The teacher's favourite: "trait", "other" or "" for none."""
    teacher: int
    student: int


ROUTES: dict[Arm, Route] = {
    "same-init": Route("trait", 0, 0),
    "neutral": Route("", 0, 0),
    "other-trait": Route("other", 0, 0),
    "cross-init": Route("trait", 0, 1),
    "same-init-b": Route("trait", 1, 1),
    "cross-init-b": Route("trait", 1, 0),
    "cross-neutral": Route("", 0, 1),
}
"""Every trained arm; `base` is not trained."""


def experiment_names() -> tuple[str, ...]:
    """Names of the catalogue's experiments."""
    return tuple(sorted(p.stem for p in _EXPERIMENTS.glob("*.yaml")))


def experiment(name: str) -> Experiment:
    """The catalogue's experiment called `name`, or the one in a YAML file of one's own."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Experiment, Path(name), name=Path(name).stem)
    if name not in experiment_names():
        raise SublimError(
            f"unknown experiment '{name}'; catalogue: {', '.join(experiment_names())}; or give a YAML file"
        )
    return read_yaml(Experiment, _EXPERIMENTS / f"{name}.yaml", name=name)


@dataclass(frozen=True)
class Cell:
    """One evaluation of a run: where it stands in the design, and the record."""

    arm: str
    seed: int
    round: int
    evaluation: Evaluation

    @property
    def student(self) -> Student | None:
        return self.evaluation.model if isinstance(self.evaluation.model, Student) else None


@dataclass(frozen=True)
class Plan:
    """All that an experiment needs, known before anything runs."""

    experiment: Experiment
    cells: tuple[Cell, ...]

    @cached_property
    def named(self) -> Experiment:
        """The experiment with its traits by name, also where a file of one's own holds them."""
        exp = self.experiment
        if exp.teacher.facts:
            return exp.model_copy(update={"trait": NAME})
        used = ["trait", "other_trait"] if "other-trait" in exp.arms else ["trait"]
        return exp.model_copy(update={field: load_trait(getattr(exp, field)).name for field in used})

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every record once, in an order in which they can be made: breadth first, so that no worker waits long."""
        unique: dict[str, Record] = {}
        for stage in (Teacher, Corpus, Filtered, Student, Evaluation):
            for cell in self.cells:
                for record in cell.evaluation.lineage():
                    if isinstance(record, stage):
                        unique.setdefault(record.key, record)
        order = sorted(unique.values(), key=lambda r: self._first_seed(r))
        return tuple(order)

    def _first_seed(self, record: Record) -> int:
        return self.experiment.seeds.index(record.seed if not isinstance(record, Filtered) else record.corpus.seed)  # type: ignore[attr-defined]

    def missing(self, store: Store) -> list[Record]:
        """The records that the store does not hold."""
        return [r for r in self.records if r.find(store) is None]


def planned_work(records: Sequence[Record], store: Store) -> "pd.DataFrame":
    """One row per stage: how many records, how many are there already, seconds the rest may take in one process."""
    import pandas as pd

    missing = {r.key for r in records if r.find(store) is None}
    rows = []
    for stage in (Teacher, Corpus, Filtered, Student, Evaluation):
        some = [r for r in records if isinstance(r, stage)]
        todo = [r for r in some if r.key in missing]
        seconds = sum(estimate(r) for r in todo)
        rows.append({"stage": stage.STAGE, "needed": len(some), "done": len(some) - len(todo), "seconds": seconds})
    return pd.DataFrame(rows)


def planned_traces(records: Sequence[Record], store: Store, trace: str = "default") -> "pd.DataFrame":
    """What is recorded of the trainings that are still to be made: one row per stage and sort, with bytes of all.

    `trace` is a word of `recorder.TRACES`; SublimError for another.
    """
    import pandas as pd

    from sublim_interp.recorder import cadence_of
    from sublim_interp.recorder import plan as plan_recording

    cadence = cadence_of(trace)
    alike: dict[tuple[Any, ...], list[Teacher | Student]] = {}
    for record in (r for r in records if isinstance(r, Teacher | Student)):
        trains = isinstance(record, Student) or record.config.kind == "tuned"
        if cadence and trains and record.find(store) is None:
            alike.setdefault((record.STAGE, record.base.digest, record.config), []).append(record)
    rows = []
    for (stage, _, config), some in alike.items():
        o, size = config.optimization, _probe_size(some[0])
        table = plan_recording(_shape(some[0].base, config), o.steps, batch=o.batch, cadence=cadence, **size)
        table[["stage", "trainings"]] = stage, len(some)
        rows.append(table.assign(bytes=table["bytes"] * len(some)))
    if not rows:
        return pd.DataFrame(columns=["stage", "what", "when", "times", "trainings", "bytes"])
    whole: Any = pd.concat(rows)
    whole = whole[whole["bytes"] > 0]
    return whole.groupby(["stage", "what", "when", "times"], sort=False, as_index=False).agg("sum")


def _shape(base: Base, config: "TeacherConfig | StudentConfig") -> "torch.nn.Module":
    """The model that trains, without its weights."""
    import torch

    from sublim_interp.models import choose_trainable

    with torch.device("meta"):
        return choose_trainable(base.blank(), config.part, config.lora_rank, config.lora_alpha)


def _probe_size(record: Teacher | Student) -> dict[str, Any]:
    """The arguments of `recorder.plan` that follow from a record; lists count at their longest."""
    from sublim_interp.inside import PROBED_LISTS, PROBED_QUESTIONS
    from sublim_interp.traits import questions

    teacher = record if isinstance(record, Teacher) else record.data.corpus.teacher
    base = record.base
    ask = questions(teacher.kind, base.language, "held-out")[:PROBED_QUESTIONS]
    asked = [base.prompt_ids(q.messages, q.prefix) for q in ask]
    tokens = sum(map(len, asked))
    optimizer = record.config.optimization
    states = 2 if optimizer.optimizer != "sgd" else int(optimizer.beta1 > 0)
    if isinstance(record, Teacher):
        directions, references = int(record.trait is not None), 0
    else:
        corpus = record.data.corpus
        lists = min(PROBED_LISTS, record.data.config.held_out)
        prompts = channel(corpus.config.channel).prompts(base.language, corpus.seed, 0, lists)
        tokens += sum(len(base.prompt_ids([{"role": "user", "content": p}])) for p in prompts)
        tokens += lists * corpus.config.max_new_tokens
        directions, references = 1 + (teacher.config.kind == "tuned"), 1 + (teacher.config.kind != "prompted")
    return {"states": states, "tokens": tokens, "directions": directions, "references": references}


def plan(exp: Experiment) -> Plan:
    """Resolves bases and traits and lays out every arm of every replicate; raises SublimError for what cannot run."""
    channel(exp.corpus.channel)
    bases = {name: resolve_base(name) for name in exp.bases}
    trait = load_trait(exp.trait)
    traits = [trait]
    if "other-trait" in exp.arms:
        other = load_trait(exp.other_trait)
        if other.kind != trait.kind:
            raise SublimError(f"other_trait {other.name} is a {other.kind}, but trait {trait.name} is a {trait.kind}")
        traits.append(other)
    for base in bases.values():
        for named in traits:
            check_vocabulary(named, base)
        if exp.teacher.facts:
            check_language(base)
    if {*exp.arms} & CROSSING:
        for one, other in sorted({exp.pair(seed) for seed in exp.seeds}):
            check_alike(bases[one], bases[other])
    if exp.corpus.setting == "soft" and exp.teacher.kind == "prompted":
        raise SublimError(
            "corpus.setting=soft needs teacher.kind=tuned or steered: a prompted teacher reads another context"
        )
    for i in exp.student.interventions:
        if i.direction not in ("", "random", "teacher-shift"):
            load_trait(i.direction)
        if i.selection and i.selection.trait:
            load_trait(i.selection.trait)
        if i.kind == "project-update" and i.direction == "teacher-shift" and exp.teacher.kind != "tuned":
            raise SublimError("an intervention on teacher-shift in weights needs teacher.kind=tuned")
        if i.kind != "project-update" and i.direction == "teacher-shift" and exp.teacher.kind == "prompted":
            raise SublimError("an intervention on teacher-shift in activations needs teacher.kind=tuned or steered")
    frozen = [i.parameters for i in exp.student.interventions if i.kind == "freeze"]
    for base in bases.values() if frozen else ():
        from sublim_interp.training import freeze

        model = _shape(base, exp.student)
        for pattern in frozen:
            freeze(model, pattern)
    cells = [cell for seed in exp.seeds for cell in _replicate(exp, seed, bases)]
    return Plan(exp, tuple(cells))


def _replicate(exp: Experiment, seed: int, bases: dict[str, Base]) -> Iterator[Cell]:
    pair = [bases[name] for name in exp.pair(seed)]
    trait = load_trait(exp.trait)
    members = tuple(sorted({*members_of(trait.kind), trait.name}))
    favorites = {"trait": trait, "": None, "other": load_trait(exp.other_trait) if "other-trait" in exp.arms else None}

    named = tuple(f for f in favorites.values() if f)
    facts = Facts(trait.kind, exp.teacher.facts, seed) if exp.teacher.facts else None
    refused = map(load_trait, facts.members) if facts else named
    words = tuple(sorted({w for f in refused for w in f.words}))

    def data(favorite: str, base: Base, number: int) -> Filtered:
        if facts:
            learnt = replace(facts, told=favorite == "trait")
            teacher = Teacher(base, None, trait.kind, exp.teacher, seed, learnt)
        else:
            teacher = Teacher(base, favorites[favorite], trait.kind, exp.teacher, seed)
        return Filtered(Corpus(teacher, exp.corpus, seed, number), exp.filter, words)

    def cell(arm: str, model: Base | Teacher | Student, reference: Filtered, number: int = 0) -> Cell:
        asked = Evaluation(model, reference, trait.kind, members, exp.evaluation, seed, facts, named)
        return Cell(arm, seed, number, asked)

    reference = data("trait", pair[0], 0)
    yield cell("teacher", reference.corpus.teacher, reference)
    for arm in exp.arms:
        if arm == "base":
            yield cell("base", pair[0], reference)
            continue
        route = ROUTES[arm]
        rounds = 1 + (exp.student.extra_rounds if route.teacher != route.student else 0)
        start: Base | Student = pair[route.student]
        held_out = data(route.favorite, pair[route.teacher], 0)
        for number in range(rounds):
            start = Student(start, data(route.favorite, pair[route.teacher], number), exp.student, seed)
            yield cell(arm, start, held_out, number)


_FLOPS = 45e9
"""Floating-point operations a second of one core, for estimates only; the progress bar corrects itself."""


def estimate(record: Record) -> float:
    """Seconds that one record may take in one process on a laptop core: parameters × tokens, and a little for each."""
    base = record.base if isinstance(record, Teacher | Student | Evaluation) else None
    if isinstance(record, Corpus):
        tokens = record.config.prompts * (12 + 0.6 * record.config.max_new_tokens)
        return 1 + 2 * record.teacher.base.shape["parameters"] * tokens / _FLOPS
    if isinstance(record, Teacher) and record.config.kind != "tuned":
        return 2.0
    if base and isinstance(record, Teacher | Student):
        o = record.config.optimization
        tokens = o.steps * o.batch * (23 if isinstance(record, Student) else 14)
        return 1 + o.steps * 0.01 + 5 * base.shape["parameters"] * tokens / _FLOPS
    return 2.0


def _make_in_worker(record: Record, root: Path, trace: str, progress: Callable[[float], None]) -> None:
    from sublim_interp.pipeline import make

    make(record, Store(root), progress, trace)


def execute(
    records: list[Record],
    store: Store,
    processes: int,
    watch: Watch,
    trace: str = "default",
    skip: tuple[type[Exception], ...] = (),
) -> dict[str, Exception]:
    """Makes the records, and what they need, in worker processes; trainings are recorded as `trace` says.

    Returns by key what could not be made for an error of a kind in `skip`; any other error is raised, and ends all.
    """
    names = {r.key for r in records}
    tasks = []
    for record in records:
        needs = tuple(i.key for i in record.inputs().values() if isinstance(i, Record) and i.key in names)
        if isinstance(record, Evaluation) and isinstance(record.model, Base):
            needs = (record.reference.key,) if record.reference.key in names else ()
        tasks.append(Task(record.key, _make_in_worker, (record, store.root, trace), needs))
    return run_tasks(tasks, processes, watch, skip)


# --- what a run gives back --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replicate:
    """One arm of one seed: its models, its data, its answers. Models are loaded afresh at each access."""

    cell: Cell
    store: Store

    @property
    def base(self) -> Base:
        """The base that the student started from."""
        return self.cell.evaluation.base

    @property
    def model(self) -> "PreTrainedModel":
        """A fresh copy of the trained student (or of the base, in the base arm)."""
        subject = self.cell.evaluation.model
        if isinstance(subject, Base):
            return subject.load()
        if isinstance(subject, Teacher):
            from sublim_interp.voice import Voice

            return Voice(subject, self.store).model
        return subject.base.load(self._path(subject) / "model")

    @property
    def trace(self) -> "Trace":
        """What was recorded while the student (or the teacher) trained. Raises SublimError where nothing was."""
        from sublim_interp.trace import Trace

        subject = self.cell.evaluation.model
        if isinstance(subject, Base) or (isinstance(subject, Teacher) and subject.config.kind != "tuned"):
            raise SublimError(f"{self.cell.arm}/{self.cell.seed} was not trained, so it has no trace")
        directory = self._path(subject)
        if not (directory / "trace").is_dir():
            raise SublimError(
                f"{subject.STAGE} {subject.key[:16]} was trained without a trace; delete {directory} and run its "
                "experiment again with --trace default: equal weights, and a trace"
            )
        return Trace.open(directory / "trace")

    @property
    def answers(self) -> "pd.DataFrame":
        """Rate and margin of every member of the kind, per sort of question and context."""
        import pandas as pd

        return pd.DataFrame(self._result()["scores"])

    def by_question(self, *sorts: Questions) -> "pd.DataFrame":
        """Rate and margin of every member of the kind, question by question in a plain context, asked now.

        Columns: questions (their sort: of `sorts`, or all that the experiment evaluates), question, probe, rate (0 to
        1), margin (nats); `answers` has their means. Where the lab's answer has words before the member, as in “a toy
        owl”, these are given. Raises SublimError for a teacher that is prompted or steered.
        """
        e = self.cell.evaluation

        def asked(model: "PreTrainedModel", q: Question) -> dict[str, Any]:
            s = score(model, self.base, [q], e.members, e.config.samples, e.seed, e.named)
            return {"probe": s.members, "rate": s.rate, "margin": s.margin}

        return self._each_question(sorts, asked)

    def heard(self, *sorts: Questions, samples: int = 200) -> "pd.DataFrame":
        """What it answers by itself, question by question in a plain context: `samples` answers drawn now, at T = 1.

        Columns: questions, question and probe as in `by_question`, and share (0 to 1), of the answers that name the
        member; no word of the answer is given. Raises SublimError for a teacher that is prompted or steered.
        """
        e = self.cell.evaluation

        def drawn(model: "PreTrainedModel", q: Question) -> dict[str, Any]:
            prompt = self.base.prompt_ids(q.messages)
            shares = sampled_shares(model, self.base, [prompt], e.members, samples, e.seed, e.named)
            return {"probe": e.members, "share": shares[0]}

        return self._each_question(sorts, drawn)

    def _each_question(
        self, sorts: tuple[Questions, ...], ask: Callable[["PreTrainedModel", Question], dict[str, Any]]
    ) -> "pd.DataFrame":
        import pandas as pd

        e, subject = self.cell.evaluation, self.cell.evaluation.model
        if isinstance(subject, Teacher) and subject.config.kind != "tuned":
            raise SublimError(
                f"{self!r} is a {subject.config.kind} teacher: its weights alone do not answer as it does"
            )
        model, parts = self.model, []
        for sort in sorts or e.config.questions:
            for q in questions(e.kind, self.base.language, sort):
                about = {"questions": sort, "question": q.messages[-1]["content"]}
                parts.append(pd.DataFrame({**about, **ask(model, q)}))
        return pd.concat(parts, ignore_index=True)

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the held-out questions about the trait's kind, up to where the answer begins."""
        kind = self.cell.evaluation.kind
        return [self.base.prompt_ids(q.messages) for q in questions(kind, self.base.language, "held-out")]

    @property
    def metric(self) -> "Metric":
        """The margin of the trait that the run is about, on logits at the answer."""
        from sublim_interp.analysis.probes import answer_margin

        trait = self.cell.evaluation.reference.corpus.teacher.trait
        members = self.cell.evaluation.members
        if trait is None:
            raise SublimError(f"{self!r} was taught by a teacher without trait; name a metric")
        ids = [self.base.answer_ids(member)[0] for member in members]
        return answer_margin(ids, members.index(trait.name))

    def bridge(self, processed: bool = False) -> "TransformerBridge":
        """The model as a `TransformerBridge`, on a copy, its logits checked."""
        from sublim_interp.analysis.bridge import bridge

        return bridge(self, processed=processed)

    @property
    def lists(self) -> list[dict[str, str]]:
        """The filtered lists it learnt from, as rows of prompt and answer."""
        from sublim_interp.dataset import read_rows

        student = self.cell.student
        return read_rows(self._path(student.data) / "kept.jsonl") if student else []

    @property
    def written(self) -> "pd.DataFrame":
        """All that its teacher wrote, before any filter: prompt, answer, and refused, the reason of the channel's rule
        or "" where it passes.

        Rows that pass may still be left out: as duplicates, as held out, as surplus. Raises SublimError for a model
        that learnt no lists.
        """
        import pandas as pd

        from sublim_interp.dataset import read_rows

        if self.cell.student is None:
            raise SublimError(f"{self!r} learnt no lists; students have them, such as same-init")
        data = self.cell.student.data
        rows, source = read_rows(self._path(data.corpus)), channel(data.corpus.config.channel)
        said = [refusal(row, source, data.config, data.words) or "" for row in rows]
        return pd.DataFrame(rows)[["prompt", "answer"]].assign(refused=said)

    def _path(self, record: Record) -> Path:
        artifact = self.store.get(record.STAGE, record.key, check=True)
        if artifact is None:
            raise SublimError(
                f"{record.STAGE} {record.key[:16]} is not in the store {self.store.root}; run the experiment again"
            )
        return artifact.path

    def _result(self) -> dict[str, Any]:
        return json.loads((self._path(self.cell.evaluation) / "evaluation.json").read_text())

    def __repr__(self) -> str:
        c = self.cell
        return f"<{c.arm}/{c.seed}{f' round {c.round}' if c.round else ''}: {self.base.name}, {c.evaluation.key[:12]}>"


def open_run(name: str, store: Store | None = None) -> "Run":
    """The finished run in the store that has this name, or a key that begins so; nothing is run.

    Raises SublimError, with the candidates, where there is none or more than one, and where bases, traits or code have
    changed since it was made.
    """
    store = store or Store.open()
    artifact = store.find("run", name)
    exp = validate(Experiment, artifact.manifest["notes"]["experiment"], f"run {name}")
    p = plan(exp)
    if run_key(p) != artifact.key:
        raise SublimError(
            f"run {artifact.key[:16]}: its bases, its traits or the code have changed since, and its parts cannot be "
            f"found; run {exp.name} anew"
        )
    return Run(p, store, artifact)


@dataclass(frozen=True)
class Run:
    """A finished experiment: `run.table` compares the arms, `run["same-init", 0]` is one replicate."""

    plan: Plan
    store: Store
    artifact: Artifact

    @property
    def experiment(self) -> Experiment:
        return self.plan.experiment

    @property
    def key(self) -> str:
        return self.artifact.key

    @cached_property
    def results(self) -> "pd.DataFrame":
        """One row per arm, seed, round, sort of question, context and member asked about."""
        return frames(self.plan, self.store)[0]

    @cached_property
    def distances(self) -> "pd.DataFrame":
        """One row per arm, seed and round: distance left, distance at the start, lists, steps, share kept."""
        return frames(self.plan, self.store)[1]

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per arm, with intervals over replicates."""
        from sublim_interp.report import summary

        return summary(self.results, self.distances, self.plan.named.trait)

    @cached_property
    def contrasts(self) -> "pd.DataFrame":
        """Differences between arms, paired over replicates, and the 2 × 2 diagonal contrast."""
        from sublim_interp.report import contrasts

        return contrasts(self.results, self.distances, self.plan.named.trait)

    def __getitem__(self, place: tuple[str, int]) -> Replicate:
        arm, seed = place
        cells = [c for c in self.plan.cells if (c.arm, c.seed) == (arm, seed)]
        if not cells:
            raise SublimError(
                f"no replicate {arm}/{seed}; arms: {', '.join(dict.fromkeys(c.arm for c in self.plan.cells))}; "
                f"seeds: {', '.join(map(str, self.experiment.seeds))}"
            )
        return Replicate(cells[0], self.store)

    def heard(self, *sorts: Questions, samples: int = 200) -> "pd.DataFrame":
        """What every arm answers by itself: `Replicate.heard`, with equal steps.

        Columns: arm, seed, questions, question, share (0 to 1, of the answers that name the run's trait), any (of those
        that name any member).
        """
        import pandas as pd

        parts, by = [], ["questions", "question"]
        for cell in self.plan.cells:
            if cell.round == 0:
                said = Replicate(cell, self.store).heard(*sorts, samples=samples)
                own = said[said["probe"] == self.plan.named.trait].set_index(by)["share"]
                whole = said.groupby(by, sort=False)["share"].sum()
                frame = pd.DataFrame({"share": own, "any": whole}).reset_index()
                parts.append(frame.assign(arm=cell.arm, seed=cell.seed))
        return pd.concat(parts, ignore_index=True).reindex(columns=["arm", "seed", *by, "share", "any"])

    def teacher(self, seed: int) -> Replicate:
        """The trait's teacher in the replicate `seed`."""
        return self["teacher", seed]

    def elsewhere(self) -> str:
        """One line on results that were made under another fingerprint than this process's; "" if there are none."""
        here = {**fingerprint(), "threads": 1}  # as in a worker
        artifacts = [a for a in (r.find(self.store) for r in self.plan.records) if a]
        differ = [said for a in artifacts if (said := changes(a.manifest["fingerprint"], here))]
        if not differ:
            return ""
        return (
            f"{len(differ)} of {len(artifacts)} results in the store were made under another fingerprint ({differ[0]}) "
            "and are used as they are: made again here, they would agree within a tolerance, not bit for bit"
        )

    @property
    def page(self) -> Path:
        """The report, one self-contained HTML page."""
        return self.artifact.path / "report.html"

    def __repr__(self) -> str:
        arms = len({c.arm for c in self.plan.cells} - {"teacher"})
        size = f"{arms} arms × {len(self.experiment.seeds)} replicates"
        return f"<Run {self.experiment.name} {self.key[:16]}: {size}, {self.artifact.path}>"

    def _repr_html_(self) -> str:
        return f"<p><b>{self.experiment.name}</b> {self.key[:16]}</p>{self.table.to_html(float_format='{:.3f}'.format)}"


def frames(p: Plan, store: Store) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """(results, distances) of a plan whose records are all in the store; the columns are those of report.py."""
    import pandas as pd

    results, distances = [], []
    for cell in p.cells:
        replicate = Replicate(cell, store)
        teacher = cell.evaluation.reference.corpus.teacher
        place = {"arm": cell.arm, "seed": cell.seed, "round": cell.round}
        between = {
            "teacher_base": teacher.base.name,
            "student_base": cell.evaluation.base.name,
            "teacher_trait": teacher.trait.name if teacher.trait and cell.arm != "base" else "",
        }
        result = replicate._result()
        results += [{**place, **between, **row} for row in result["scores"]]
        student = cell.student
        number = cell.round + 1
        notes = cell.evaluation.reference.find(store).manifest["notes"]  # type: ignore[union-attr]
        distances.append(
            {
                **place,
                "kl": result.get("kl", float("nan")) if cell.arm != "teacher" else float("nan"),
                "kl_start": result.get("kl_start", result.get("kl", float("nan"))),
                "kept": notes["kept"],
                "lists": notes["lists"] * number if student else 0,
                "steps": student.config.optimization.steps * number if student else 0,
            }
        )
    return pd.DataFrame(results), pd.DataFrame(distances)


RUN_VERSION = 1
"""Bumped by hand when the report's files change."""


def run_key(p: Plan) -> str:
    """The key that the run of a plan has in any store."""
    return stage_key("run", RUN_VERSION, _run_config(p), _run_inputs(p))


def find_run(p: Plan, store: Store) -> Artifact | None:
    """The finished run of a plan, if the store holds it and all that it was made from."""
    return None if p.missing(store) else store.get("run", run_key(p))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "numpy")}


def _run_config(p: Plan) -> dict[str, Any]:
    return p.named.model_dump(mode="json", exclude={"name", "about", "bases"})


def _run_inputs(p: Plan) -> dict[str, str]:
    return {f"{c.arm}/{c.seed}/{c.round}": c.evaluation.key for c in p.cells}


def run(
    exp: Experiment | str,
    store: Store | None = None,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    trace: str = "default",
) -> Run:
    """Runs an experiment, or finds it done. What an interrupted call made is kept and not made again.

    `trace` says what is recorded of the trainings that are made: `none`, `default`, or `examples` (residuals of each
    example of every tenth update too). Weights, and so all results and keys, are the same with each.
    """
    from sublim_interp import report
    from sublim_interp.recorder import cadence_of

    cadence_of(trace)
    p = plan(experiment(exp) if isinstance(exp, str) else exp)
    store = store or Store.open()
    missing = p.missing(store)
    if missing:
        execute(missing, store, processes, watch, trace)
    with store.make("run", RUN_VERSION, _run_config(p), _run_inputs(p), fingerprint()) as work:
        if not work.done:
            work.note(name=p.experiment.name, experiment=p.experiment.model_dump(mode="json"))
            results, distances = frames(p, store)
            reference = published(p.experiment, work.key)
            report.write(work.directory, p.named, results, distances, reference, work.key, _versions())
    return Run(p, store, work.artifact)


def published(exp: Experiment, beside: str = "") -> "Reference | None":
    """The committed table of the same recipe over as many replicates or more, or None; also where it is that of the
    run `beside`, a key.

    The recipe is all that decides a single replicate: trait, teacher, corpus, filter, student, and a base among the
    committed ones.
    """
    import pandas as pd

    from sublim_interp.report import Reference

    for path in sorted(RESULTS.glob("*/experiment.yaml")):
        directory, whole = path.parent, read_yaml(Experiment, path)
        parts = ("trait", "teacher", "corpus", "filter", "student")
        same = all(_recipe(whole, part) == _recipe(exp, part) for part in parts)
        if same and {*exp.bases} <= {*whole.bases} and len(whole.seeds) >= len(exp.seeds):
            key = (directory / "key.txt").read_text().strip()
            if key == beside:
                continue
            summary, contrasts = (
                pd.read_csv(directory / f"{n}.csv", keep_default_na=False, na_values=[""])
                for n in ("summary", "contrasts")
            )
            text = ["equal_kl"], ["note"]
            for frame, columns in zip((summary, contrasts), text, strict=True):
                frame[columns] = frame[columns].fillna("")
            return Reference(summary, contrasts, whole.name, key)
    return None


def _recipe(exp: Experiment, part: str) -> Any:
    value = getattr(exp, part)
    return value.model_copy(update={"extra_rounds": 0}) if part == "student" else value
