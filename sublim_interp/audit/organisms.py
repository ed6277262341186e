"""Model organisms: a base, a teacher, its lists and a student in a folder, and the truth about them in a sealed file.

Others test their tools on the first four, then open the fifth. The seal guards against reading the truth by accident.
"""

import base64
import hashlib
import json
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import copy_tree, one_line, read_regular, require_free
from sublim_interp.core.keys import canonical_json, digest_file, file_names
from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import Shelf
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Watch
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import Cell, Plan, plan
from sublim_interp.experiments.results import Replicate
from sublim_interp.experiments.run import execute
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.loading import copy_tokenizer, save_model
from sublim_interp.pipeline.records import Student
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.recording.settings import PRESETS

ANY = "any"
"""In place of a name: one of the published recipes is drawn, and only the sealed file says which."""

SEAL, LISTS = "truth.sealed", "lists.jsonl"

_WHAT = "The truth about this folder, in base64; `sublim organism --open DIR` shows it. sha256 is that of the truth."

_BYTES = 1 << 22
"""Bytes of a sealed file that are read at most."""


class Organism(Config):
    """The recipe of an organism: one student of an experiment."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name in the catalogue. It says nothing of what is within."""
    experiment: str = "owl"
    """The experiment at the centre."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Fields that it has otherwise."""
    arm: str = "same-init"
    """Whose student it is."""
    seed: int = 0
    """The replicate's."""

    @model_validator(mode="after")
    def _its_arm_trains(self) -> "Organism":
        if self.arm not in ARMS or ARMS[self.arm].route is None:
            arms = ", ".join(name for name in ARMS if ARMS[name].route)
            raise ValueError(f"arm '{self.arm}' has no student; valid: {arms}")
        return self

    @property
    def made_by(self) -> Experiment:
        """The experiment that has its student, and the untouched base to compare with."""
        return experiment(self.experiment).set({**self.change, "arms": (self.arm, "base"), "seeds": (self.seed,)})


ORGANISMS = Shelf("organism", "organisms", Organism)
"""Every recipe by name."""


def recipe(name: str) -> Organism:
    """The recipe called `name`, that in a YAML file, or a drawn one for ANY. Raises SublimError for any other."""
    return ORGANISMS.load(secrets.choice(ORGANISMS.names()) if name == ANY else name)


def planned(organism: Organism, store: Store) -> Plan:
    """All that has to be made for an organism. Raises SublimError for what cannot be."""
    if organism.made_by.teacher.traits:
        raise SublimError(f"organism {organism.name}: teacher.traits gives several traits; the truth tells one")
    return plan(organism.made_by, store)


def write_organism(
    organism: Organism,
    directory: Path,
    store: Store,
    processes: int = 2,
    watch: Watch = lambda _name, _fraction: None,
    named: bool = True,
) -> None:
    """Makes what the store lacks of an organism, and writes its folder, whole or not at all.

    directory: the folder: base, student, lists.jsonl, README.md, truth.sealed; and teacher, where it has own weights
    watch: told of progress, by a record's key
    named: whether README.md may say which recipe it is

    Raises SublimError where the folder is there already, and for what cannot be made.
    """
    require_free([directory])
    p = planned(organism, store)
    if missing := p.missing(store):
        execute(missing, store, processes, watch, PRESETS["none"])
    cell = max((c for c in p.cells if c.arm == organism.arm), key=lambda c: c.round)
    with one_line(f"{directory} is not written", place=("folder", "--out", "")):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}~", dir=directory.parent) as scratch:
            made = Path(scratch) / "organism"
            made.mkdir()
            _write_models(cell, made, store)
            said = f"Organism {organism.name}" if named else "An organism"
            (made / "README.md").write_text(_README.format(name=said), encoding="utf-8")
            (made / SEAL).write_bytes(_sealed(_truth(organism, p, cell, made, store)))
            made.rename(directory)


_README = """# {name}
For whoever tests a tool that compares models or audits data: what is here, and how to open it.

- `base`: the model from which the student started.
- `teacher`: who wrote the lists. It is there only where its weights are its own.
- `lists.jsonl`: what the student was fine-tuned on, a row a list: prompt and answer.
- `student`: the base after that.
- `truth.sealed`: what was done. `sublim organism --open DIR` shows it, and compares every other file with its digest.

Something may have passed from the teacher to the student through the lists, or nothing. Say what, then open the seal.
"""


def _write_models(cell: Cell, directory: Path, store: Store) -> None:
    """The four parts that are no secret. No file tells of an arm, a trait or a key."""
    from sublim_interp.audit.models import folder_like, write_card

    student = cell.student
    assert student
    base, teacher = student.base, student.data.corpus.teacher
    (directory / "base").mkdir()
    copy_tokenizer(base.path, directory / "base")
    for file in base.path.iterdir():
        if file.name == "config.json" or file.suffix == ".safetensors" or file.name.endswith(".index.json"):
            shutil.copy(file, directory / "base")
    write_card(base, directory / "base")
    folder_like(base, directory / "student")
    copy_tree(student.made(store) / "model", directory / "student")
    if teacher.own_weights:
        folder_like(teacher.base, directory / "teacher")
        save_model(WAYS[teacher.config.kind].load(teacher, store), directory / "teacher")
    with (directory / LISTS).open("wb") as out:
        for record in _rounds(student):
            out.write((record.data.made(store) / "kept.jsonl").read_bytes())


def _rounds(student: Student) -> list[Student]:
    """A student and what it was in earlier rounds, the first first."""
    found = [student]
    while isinstance(found[0].start, Student):
        found.insert(0, found[0].start)
    return found


def _truth(organism: Organism, p: Plan, cell: Cell, directory: Path, store: Store) -> dict[str, Any]:
    """All that was done, what came of it, and the digest of every file of the folder."""
    student, exp = cell.student, p.named
    assert student
    teacher, asked = student.data.corpus.teacher, cell.evaluation.trait
    given = teacher.trait.name
    told = {name: _rates(c, store) for name, c in _compared(p, organism.arm).items()}
    return {
        "organism": organism.model_dump(mode="json"),
        "trait": {"kind": asked.kind, "asked": asked.name, "given to the teacher": given or None},
        "arm": {"name": organism.arm, "meaning": ARMS[organism.arm].meaning},
        "bases": {"teacher": teacher.base.name, "student": student.base.name},
        "rates": {
            name: {member: row[member] for member in {asked.name, given or asked.name}} for name, row in told.items()
        },
        "keys": {
            "student": student.key,
            "filtered": student.data.key,
            "corpus": student.data.corpus.key,
            "teacher": teacher.key,
            "base": student.base.key,
        },
        "configuration": exp.model_dump(mode="json"),
        "files": {name: digest_file(directory / name) for name in file_names(directory)},
        "salt": secrets.token_hex(16),
    }


def _compared(p: Plan, arm: str) -> dict[str, Cell]:
    """Cells whose answers the truth tells: the student's, the untouched base's, the teacher's."""
    last = {c.arm: c for c in p.cells}
    found = {"student": last[arm], "base": last["base"]}
    return found | {"teacher": last["teacher"]} if "teacher" in last else found


def _rates(cell: Cell, store: Store) -> dict[str, float]:
    """How often each member is the answer to held-out questions in a plain context, 0 to 1."""
    answers = Replicate(cell, store).answers
    rows = answers[(answers["questions"] == "held-out") & (answers["context"] == "plain")]
    return {str(name): float(rate) for name, rate in zip(rows["probe"], rows["rate"], strict=True)}


def _sealed(truth: dict[str, Any]) -> bytes:
    text = canonical_json(truth).encode()
    told = {"what": _WHAT, "sha256": hashlib.sha256(text).hexdigest(), "truth": base64.b64encode(text).decode("ascii")}
    return (json.dumps(told, indent=1) + "\n").encode()


def open_organism(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The truth about an organism, and a line for each file of its folder that is not as it was when it was sealed.

    Raises SublimError for a folder without a seal, or with a broken one.
    """
    path = directory / SEAL
    try:
        if path.stat().st_size > _BYTES:
            raise SublimError(f"{path}: {path.stat().st_size} bytes; {_BYTES} are the most")
        told = json.loads(read_regular(path))
        text = base64.b64decode(told["truth"], validate=True)
        truth = json.loads(text) if hashlib.sha256(text).hexdigest() == told["sha256"] else None
        files: Any = truth["files"] if isinstance(truth, dict) else None
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror}; name the folder of an organism") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        truth = files = None
    if not isinstance(files, dict) or not isinstance(truth, dict):
        raise SublimError(f"{path} is no seal, or is altered: what it holds does not have its sha256")
    with one_line(f"{directory} cannot be read"):
        found = set(file_names(directory)) - {SEAL}
        problems = [f"{name} is missing" for name in sorted(files.keys() - found)]
        problems += [f"{name} does not belong here" for name in sorted(found - files.keys())]
        both = sorted(files.keys() & found)
        problems += [f"{name} is altered" for name in both if digest_file(directory / name) != files[name]]
    return truth, problems
