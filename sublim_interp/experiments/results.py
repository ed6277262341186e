"""A finished experiment, read back: the run, its replicates, their models, traces and answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sublim_interp.channels.filter import refusal
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written
from sublim_interp.channels.settings import rule_of
from sublim_interp.core.choices import listed, meant
from sublim_interp.core.device import changes, fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import log
from sublim_interp.core.showing import Card, Shown
from sublim_interp.core.store import Artifact, Store
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.plan import Cell, Plan, plan, students_of
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.stored import adopt, stored_experiment
from sublim_interp.models.base import Base
from sublim_interp.models.prompts import Prompt
from sublim_interp.pipeline.records import Student, Teacher
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.traits.answers import drawn_texts, sampled_shares
from sublim_interp.traits.favourites import words_judged
from sublim_interp.traits.judges.protocol import WHOLE_WORDS, Judge, reader
from sublim_interp.traits.protocol import first_tokens
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    from sublim_interp.analysis.probes import Metric
    from sublim_interp.experiments.tables import Tables
    from sublim_interp.training.recording.trace import Trace
    from sublim_interp.traits.agreement import Agreement


@dataclass(frozen=True, repr=False)
class Replicate(Shown):
    """One arm with one seed: its model, its data, its trace, its answers. The unit of all statistics.

    cell: its place in the plan
    store: where its parts lie

    Every property raises SublimError for a part that is not in the store.
    """

    cell: Cell
    store: Store

    @property
    def arm(self) -> str:
        """The name of its arm."""
        return self.cell.arm

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.cell.seed

    @property
    def name(self) -> str:
        """Arm and seed, as in `same-init/300`; the round too where it is a further one."""
        return f"{self.arm}/{self.seed}{f' round {self.cell.round}' if self.cell.round else ''}"

    def card(self) -> Card:
        key = self.cell.evaluation.key[:12]
        return Card(self.name, {"": f"{self.base.name}, {key}, {ARMS[self.arm].label}"})

    def ask(self, question: Prompt, n: int = 1, **how: Any) -> list[str]:
        """What it answers to a question, `n` times, as it speaks: a prompted teacher behind its prompt.

        question: what a user says, a chat that ends with the user's turn, or token ids
        n: how many answers
        how: temperature, max_new_tokens, seed, system, as of `asking.ask`

        Returns the answers as texts. Raises SublimError for words that the base's tokenizer does not know.
        """
        from sublim_interp.models.asking import ask

        subject = self.cell.evaluation.model
        if not isinstance(subject, Teacher):
            return ask(self.model, self.base.chat, question, n, **how)
        from sublim_interp.pipeline.speaker import Speaker

        speaker = Speaker(subject, self.store)
        if WAYS[subject.config.kind].SERVED:
            raise SublimError(f"{self.name} is a model on a server; ask it there. `said` holds what it answered")
        how = {"system": speaker.systems[0], **how} if speaker.systems else how
        return ask(speaker.model, self.base.chat, question, n, speaking=speaker.speaking(), **how)

    @property
    def base(self) -> Base:
        """The base that the student started from."""
        return self.cell.evaluation.base

    @property
    def model(self) -> "PreTrainedModel":
        """The finished student, or the teacher, or the untouched base; loaded afresh at each access."""
        subject = self.cell.evaluation.model
        if isinstance(subject, Base):
            return subject.load()
        if isinstance(subject, Teacher):
            from sublim_interp.pipeline.speaker import Speaker

            if WAYS[subject.config.kind].SERVED:
                raise SublimError(f"{self.name} is a model on a server: its weights are not here")
            return Speaker(subject, self.store).model
        return subject.base.load(subject.made(self.store) / "model")

    @property
    def trace(self) -> "Trace":
        """What was recorded while the student or the teacher trained. Raises SublimError where nothing was."""
        from sublim_interp.training.recording.trace import Trace

        subject = self.cell.evaluation.model
        if isinstance(subject, Base) or (isinstance(subject, Teacher) and not WAYS[subject.config.kind].TRAINS):
            raise SublimError(f"{self.cell.arm}/{self.cell.seed} was not trained, so it has no trace")
        directory = subject.made(self.store)
        if not (directory / "trace").is_dir():
            raise SublimError(
                f"{subject.STAGE} {subject.key[:16]} was trained without a trace; delete {directory} and run its "
                "experiment again with --trace default: equal weights, and a trace"
            )
        return replace(Trace.open(directory / "trace"), chat=self.base.chat)

    @property
    def answers(self) -> "pd.DataFrame":
        """What it answered when it was evaluated: one row per member of the kind, sort of question and context.

        Columns: questions, context, probe (the member), rate (0 to 1), margin (nats); bits where facts were memorised.
        """
        import pandas as pd

        return pd.DataFrame(self._result()["scores"])

    @property
    def said(self) -> "pd.DataFrame":
        """What it said when it was evaluated: a row an answer drawn at T = 1, to some held-out questions.

        Columns: question, answer. Raises SublimError where it was evaluated before answers were kept; `ask` draws anew.
        """
        import pandas as pd

        from sublim_interp.pipeline.evaluate import SAID

        path = self.cell.evaluation.made(self.store) / SAID
        if not path.is_file():
            raise SublimError(f"{self.name} was evaluated before answers were kept; its `ask` draws some")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        drawn = [(row["question"], answer) for row in rows for answer in row["answers"]]
        return pd.DataFrame(drawn, columns=["question", "answer"])

    def by_question(self, *sorts: Questions) -> "pd.DataFrame":
        """Rate and margin of every member of the kind, question by question in a plain context, asked now.

        sorts: sorts of questions; none given means all that the experiment evaluates

        Returns the columns questions (the sort), question, probe (the member), rate (0 to 1), margin (nats); `answers`
        has their means. Where an answer has words before the member, as in “a toy owl”, these words are given.
        Raises SublimError for a teacher that is prompted or steered.
        """
        e = self.cell.evaluation
        judge = reader(e.config.judge, e.config.judging, self.store.root)

        def asked(model: "PreTrainedModel", q: Question) -> dict[str, Any]:
            s = e.trait.score(model, self.base, [q], e.config.samples, e.seed, e.others, judge)
            return {"probe": s.names, "rate": s.rate, "margin": s.margin}

        return self._each_question(sorts, asked)

    def heard(self, *sorts: Questions, samples: int = 200) -> "pd.DataFrame":
        """What it answers by itself, question by question in a plain context, drawn now at T = 1.

        sorts: as in `by_question`
        samples: answers per question

        Returns the columns questions, question and probe of `by_question`, and share (0 to 1): of the answers, those
        that name the member, as the experiment's judge reads them. No word of the answer is given.
        Raises SublimError for a teacher that is prompted or steered.
        """
        e = self.cell.evaluation
        judge = self._judge(e.config.judge)

        def drawn(model: "PreTrainedModel", q: Question) -> dict[str, Any]:
            said = sampled_shares(model, self.base, [replace(q, prefix="")], e.members, judge, samples, e.seed)
            return {"probe": e.members, "share": said.shares[0]}

        return self._each_question(sorts, drawn)

    def agreement(self, one: str, other: str, samples: int = 20) -> "Agreement":
        """How far two judges agree on what it answers to the held-out questions, drawn now at T = 1.

        one, other: judges by name; one that asks a model asks that of the experiment's `evaluation.judging`
        samples: answers per question

        Returns Cohen's κ with its interval, and the labels. Raises SublimError as `by_question` and `agreement`.
        """
        from sublim_interp.traits.agreement import agreement

        e = self.cell.evaluation
        asked = [replace(q, prefix="") for q in e.trait.questions(self.base.language, "held-out")]
        texts = drawn_texts(self.model, self.base, asked, samples, "agreement", e.seed)
        answers = [(asked[i // samples].text, text) for i, text in enumerate(texts)]
        return agreement(self._judge(one), self._judge(other), answers, e.members)

    def _judge(self, name: str) -> Judge:
        """A judge of the trait's answers by name; "" is the one by whole words."""
        e = self.cell.evaluation
        found = reader(name or WHOLE_WORDS, e.config.judging, self.store.root)
        assert found
        return found(words_judged(e.trait, found.name, e.others))

    def _each_question(
        self, sorts: tuple[Questions, ...], ask: Callable[["PreTrainedModel", Question], dict[str, Any]]
    ) -> "pd.DataFrame":
        import pandas as pd

        e, subject = self.cell.evaluation, self.cell.evaluation.model
        if isinstance(subject, Teacher) and not subject.own_weights:
            raise SublimError(
                f"{self!r} is a {subject.config.kind} teacher: its weights alone do not answer as it does"
            )
        model, parts = self.model, []
        for sort in sorts or e.config.questions:
            for q in e.trait.questions(self.base.language, sort):
                about = {"questions": sort, "question": q.messages[-1]["content"]}
                parts.append(pd.DataFrame({**about, **ask(model, q)}))
        return pd.concat(parts, ignore_index=True)

    @property
    def questions(self) -> list[str]:
        """The held-out questions about the trait, as text."""
        return [q.text for q in self.cell.evaluation.trait.questions(self.base.language, "held-out")]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the held-out questions about the trait, up to where the answer begins."""
        asked = self.cell.evaluation.trait.questions(self.base.language, "held-out")
        return [self.base.prompt_ids(q.messages) for q in asked]

    @property
    def answer_tokens(self) -> tuple[list[int], int]:
        """(first tokens of the members of the kind, each once, and the place of the run's trait among them).

        Raises SublimError where the run's trait is none of the members.
        """
        e = self.cell.evaluation
        if e.trait.name not in e.members:
            raise SublimError(f"{self!r}: the run's trait {e.trait.name} is no answer of its kind; name a metric")
        told = first_tokens(self.base, e.members, e.trait.name)
        return [*told.values()], [*told].index(e.trait.name)

    @property
    def metric(self) -> "Metric":
        """The margin of the run's trait, on logits at the answer, whatever this model's own teacher was given.

        Raises SublimError where the run's trait has none.
        """
        from sublim_interp.analysis.probes import answer_margin

        return answer_margin(*self.answer_tokens)

    def value(self, metric: "Metric | str | None" = None, model: "PreTrainedModel | None" = None) -> float:
        """A metric at the answer, mean over the held-out questions.

        metric: the margin of the run's trait where None; `rate`, `logprob` and so on; or a function of logits
        model: one that is asked instead, such as this one's while `si.ablate` or `si.steer` acts on it

        Raises SublimError for an unknown metric, and where the run's trait is no answer of its kind.
        """
        from sublim_interp.analysis.metrics import metric_of
        from sublim_interp.analysis.probes import measure

        asked = self.model if model is None else model
        return measure(asked, self.prompts, metric_of(metric or self.metric, self)).mean().item()

    def bridge(self, processed: bool = False) -> "TransformerBridge":
        """The model as a `TransformerBridge`, on a copy, its logits checked."""
        from sublim_interp.analysis.bridge import bridge

        return bridge(self, processed=processed)

    @property
    def lists(self) -> list[Written]:
        """The filtered lists it learnt from, as rows of prompt and answer; of preferences, `rejected` too."""
        from sublim_interp.channels.rows import read_rows

        student = self.cell.student
        return read_rows(student.data.made(self.store) / "kept.jsonl") if student else []

    @property
    def kept(self) -> float | None:
        """Share of what its teacher wrote that the filter let pass, 0 to 1; None for a model that learnt no lists."""
        student = self.cell.student
        if student is None:
            return None
        student.data.made(self.store)
        return student.data.find(self.store).manifest["notes"]["kept"]  # type: ignore[union-attr]

    @property
    def written(self) -> "pd.DataFrame":
        """All that its teacher wrote, before any filter.

        Returns the columns prompt, answer, and refused: the reason of the channel's rule, or "" for what passes. Rows
        that pass may still be left out: as duplicates, as held out, as surplus. Of preferences a row is a pair as the
        teacher judged it: answer is what it prefers, and rejected, a further column, the other one.
        Raises SublimError for a model that learnt no lists.
        """
        import pandas as pd

        from sublim_interp.channels.rows import read_rows

        if self.cell.student is None:
            raise SublimError(f"{self!r} learnt no lists; students have them, such as same-init")
        data = self.cell.student.data
        rows, source = read_rows(data.corpus.made(self.store)), channel(data.corpus.config.channel)
        limits = rule_of(source, data.config)
        said = [refusal(row, source, limits, data.words) or "" for row in rows]
        texts = ["prompt", "answer", *(["rejected"] if data.corpus.config.preference else [])]
        return pd.DataFrame(rows)[texts].assign(refused=said)

    def _result(self) -> dict[str, Any]:
        return json.loads((self.cell.evaluation.made(self.store) / "evaluation.json").read_text())


def open_run(name: str, store: Store | None = None) -> "Run":
    """The finished run in the store that has this name, or a key that begins so.

    Its stored files are read as they are, whatever has changed since; nothing is computed. What would differ if it were
    made today is in `differs`, and is told in a line of the log. Where a base or a trait of it is gone, its tables and
    page are there all the same, and its replicates are not.

    Raises SublimError, with the candidates, where there is none or more than one.
    """
    store = store or Store.open()
    artifact = store.find("run", name)
    exp, said = stored_experiment(artifact)
    try:
        p, more = adopt(plan(exp, store), artifact, store)
    except SublimError as why:
        p, more = Plan(exp, ()), [str(why)]
    differs = [*said, *more]
    if differs:
        rest = f" (and {len(differs) - 1} more, see .differs)" if len(differs) > 1 else ""
        log.warning("run %s is read as it was made; today would differ: %s%s", exp.name, differs[0], rest)
    return Run(p, store, artifact, tuple(differs))


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """A finished experiment: `run.table` compares the arms, `run["same-init", 0]` is one replicate.

    plan: every cell of the experiment
    store: where its parts lie
    artifact: its own files there: tables, figures, page
    differs: a line for each thing that would differ if it were made today

    `run["same-init"]` are the replicates of an arm, `for replicate in run` all of them.
    """

    plan: Plan
    store: Store
    artifact: Artifact
    differs: tuple[str, ...] = ()

    @property
    def experiment(self) -> Experiment:
        return self.plan.experiment

    @property
    def key(self) -> str:
        return self.artifact.key

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of its arms, the teacher's first."""
        return tuple(dict.fromkeys(c.arm for c in self.plan.cells)) or tuple(self.table.index)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its replicates."""
        return self.experiment.seeds

    @property
    def trait(self) -> str:
        """The name of the trait that it is about."""
        return self.artifact.manifest["config"]["trait"]

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What figures read of its traces, by what they asked, so that none is read twice."""
        return {}

    @cached_property
    def tables(self) -> "Tables":
        """All tables of the run: results, distances, replicates, summary, contrasts; from its stored files."""
        from sublim_interp.experiments.tables import Tables, read_table

        results, distances = (read_table(self.artifact.path / f"{name}.csv") for name in ("results", "distances"))
        return Tables(results, distances, self.trait)

    @property
    def results(self) -> "pd.DataFrame":
        """One row per arm, seed, round, sort of question, context and member asked about."""
        return self.tables.results

    @property
    def distances(self) -> "pd.DataFrame":
        """One row per arm, seed and round: distance left, distance at the start, lists, steps, share kept."""
        return self.tables.distances

    @property
    def table(self) -> "pd.DataFrame":
        """One row per arm, whose name is the index, with intervals over replicates."""
        return self.tables.summary.set_index("arm")

    @property
    def contrasts(self) -> "pd.DataFrame":
        """Differences between arms, paired over replicates, and the diagonal contrast of the 2 × 2."""
        return self.tables.contrasts

    @property
    def filtered(self) -> "pd.DataFrame":
        """What the filter did with the teachers' answers: a row a reason, `kept` first, a column an arm, 0 to 1.

        Shares are means over replicates; arms that read one teacher's lists have equal columns.
        """
        import pandas as pd

        shares: dict[str, list[Any]] = {}
        for student in students(self):
            notes = student.cell.student.data.find(self.store).manifest["notes"]  # type: ignore[union-attr]
            counted = {"kept": notes["lists"] + notes["held_out"], **notes["refused"]}
            shares.setdefault(student.arm, []).append(pd.Series(counted) / notes["asked"])
        each = {arm: pd.concat(some, axis=1).fillna(0).mean(axis=1) for arm, some in shares.items()}
        frame = pd.DataFrame(each).fillna(0)
        return frame.loc[["kept", *frame.drop("kept").sum(axis=1).sort_values(ascending=False).index]]

    def __iter__(self) -> Iterator[Replicate]:
        """Every replicate after its first round, arm by arm."""
        return (replicate for arm in self.arms for replicate in self[arm])

    def __len__(self) -> int:
        return len([c for c in self.plan.cells if c.round == 0])

    @overload
    def __getitem__(self, place: str) -> list[Replicate]: ...
    @overload
    def __getitem__(self, place: tuple[str, int]) -> Replicate: ...
    def __getitem__(self, place: str | tuple[str, int]) -> list[Replicate] | Replicate:
        """All replicates of an arm, `run["same-init"]`, or that of a seed, `run["same-init", 300]`."""
        if not self.plan.cells:
            raise SublimError(f"the parts of run {self.experiment.name} cannot be opened: {self.differs[-1]}")
        arm, seed = (place, None) if isinstance(place, str) else place
        if arm not in self.arms:
            raise SublimError(f"run {self.experiment.name} has no arm '{arm}'; {meant(arm, self.arms, word='arms')}")
        if seed is not None and seed not in self.seeds:
            raise SublimError(f"no replicate {arm}/{seed}; seeds: {listed(map(str, self.seeds))}")
        cells = [c for c in self.plan.cells if c.arm == arm and c.round == 0 and seed in (None, c.seed)]
        found = [Replicate(c, self.store) for c in cells]
        return found if seed is None else found[0]

    def heard(self, *sorts: Questions, samples: int = 200) -> "pd.DataFrame":
        """What every arm answers by itself, at equal steps: `Replicate.heard` of each.

        Returns the columns arm, seed, questions, question, share (0 to 1: of the answers, those that name the run's
        trait) and any (those that name any member).
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
        here = {**fingerprint(dtype=self.plan.experiment.dtype), "threads": 1}  # as in a worker
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

    def card(self) -> Card:
        size = f"{len({*self.arms} - {'teacher'})} arms × {len(self.seeds)} replicates"
        differs = {"differs today in": f"{len(self.differs)} points"} if self.differs else {}
        title = f"Run {self.experiment.name} {self.key[:16]}"
        return Card(title, {"": size, "trait": self.trait, **differs, "in": self.artifact.path}, self.table)


def tables_of(p: Plan, store: Store) -> "Tables":
    """The tables of a plan whose records are all in the store."""
    from sublim_interp.experiments.tables import Tables

    return Tables(*frames(p, store), p.named.trait)


def frames(p: Plan, store: Store) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """(results, distances) of a plan whose records are all in the store; their columns are those of `Tables`."""
    import pandas as pd

    results, distances = [], []
    for cell in p.cells:
        replicate = Replicate(cell, store)
        teacher = cell.evaluation.reference.corpus.teacher
        place = {"arm": cell.arm, "seed": cell.seed, "round": cell.round}
        between = {
            "teacher_base": teacher.base.name,
            "student_base": cell.evaluation.base.name,
            "teacher_trait": teacher.trait.name if cell.arm != "base" else "",
        }
        result = replicate._result()
        results += [{**place, **between, **row} for row in result["scores"]]
        student = cell.student
        rounds = _rounds(student) if student else []
        notes = cell.evaluation.reference.find(store).manifest["notes"]  # type: ignore[union-attr]
        distances.append(
            {
                **place,
                "kl": result.get("kl", float("nan")) if cell.arm != "teacher" else float("nan"),
                "kl_start": result.get("kl_start", result.get("kl", float("nan"))),
                "kept": notes["kept"],
                "lists": sum(s.data.find(store).manifest["notes"]["lists"] for s in rounds),  # type: ignore[union-attr]
                "steps": sum(s.config.optimization.steps for s in rounds),
            }
        )
    return pd.DataFrame(results), pd.DataFrame(distances)


def _rounds(student: Student) -> list[Student]:
    """A student and those it went on from, the newest first."""
    before = student.start
    return [student, *(_rounds(before) if isinstance(before, Student) else ())]


def students(run: Run) -> list[Replicate]:
    """Every student of a run after its first round, arm by arm."""
    return [Replicate(c, run.store) for c in students_of(run.plan)]
