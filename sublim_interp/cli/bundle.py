"""A replicate as a folder that the Hugging Face hub shows as a model: weights, lists, trace, card, lineage."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError, said_of
from sublim_interp.core.files import copy_tree, one_line, require_free, write_atomic

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from sublim_interp.audit.lineage.graph import Lineage
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import Replicate, Run
    from sublim_interp.models.base import Base
    from sublim_interp.pipeline.records import Student

LISTS = ("kept.jsonl", "held_out.jsonl")
"""What is taken of a student's lists: those that it read, and those on which it was measured."""


@dataclass(frozen=True)
class Bundle:
    """A written folder.

    path: where it is
    card: the front matter of its README.md, as the hub reads it
    files: the bytes of each file by its name, sorted
    """

    path: Path
    card: dict[str, Any]
    files: dict[str, int]


def bundle(
    address: str,
    name: str,
    to: Path,
    store: "Store",
    licence: str = "",
    trace: bool = True,
    bases: tuple[str, ...] = (),
) -> Bundle:
    """Writes a student as a folder for the hub.

    address: RUN/ARM/SEED
    name: what it will be called there, OWNER/NAME
    to: the folder, which is not there yet
    licence: of the weights, as the hub names licences; "": that of its base, by the base's own card
    trace: whether what was recorded while it trained goes along
    bases: further names or directories among which its base is looked for

    Raises SublimError where the address means no student; for damaged files, which are not vouched for; where neither
    card nor `licence` names a licence; for a name that the hub does not take; and for a folder that exists.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from sublim_interp.audit.lineage.exports import export
    from sublim_interp.audit.lineage.trace import lineage

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SublimError(f"'{name}' is no name of the hub, which is OWNER/NAME ({said_of(error)})") from None
    if name.count("/") != 1:
        raise SublimError(f"'{name}' is no name of the hub, which is OWNER/NAME")
    run, replicate, student = _student(address, store)
    licence = licence or licence_of(replicate.base)
    found = lineage(address, store, bases=bases)
    require_free([to])
    place = ("folder", "another path with --to", "")
    with one_line(f"{to} is not written", place=place), tempfile.TemporaryDirectory(dir=to.absolute().parent) as beside:
        folder = Path(beside) / to.name
        copy_tree(student.made(store) / "model", folder)
        export(found, "model-card", folder / "README.md")
        if trace and (student.made(store) / "trace").is_dir():
            copy_tree(student.made(store) / "trace", folder / "trace")
        (folder / "lists").mkdir()
        for file in LISTS:
            shutil.copy(student.data.made(store) / file, folder / "lists" / file)
        shutil.copy(replicate.cell.evaluation.made(store) / "evaluation.json", folder / "evaluation.json")
        replicate.base.tokenizer.save_pretrained(str(folder))
        write_atomic(folder / "sublim.json", json.dumps({"language": replicate.base.language}) + "\n")
        write_atomic(folder / "lineage.json", json.dumps(_told_to_others(found), indent=1) + "\n")
        about = _about(address, run, replicate, student)
        card = _completed(ModelCard.load(folder / "README.md"), name, licence, about)
        card.save(folder / "README.md")
        folder.rename(to)
    written = sorted(p for p in to.rglob("*") if p.is_file())
    return Bundle(to, card.data.to_dict(), {p.relative_to(to).as_posix(): p.stat().st_size for p in written})


def _told_to_others(found: "Lineage") -> dict[str, Any]:
    """A lineage as plain data, without the places of this machine."""
    plain = found.plain()
    for thing in plain["things"]:
        del thing["path"]
    return plain


def _student(address: str, store: "Store") -> "tuple[Run, Replicate, Student]":
    from sublim_interp.experiments.results import open_run

    parts = address.split("/")
    if len(parts) != 3 or not parts[2].removeprefix("-").isdecimal():
        raise SublimError(f"'{address}' is no student; give RUN/ARM/SEED, such as owl/same-init/0")
    run = open_run(parts[0], store)
    replicate = run[parts[1], int(parts[2])]
    if replicate.cell.student is None:
        raise SublimError(f"{address} was not trained as a student; choose an arm with students")
    return run, replicate, replicate.cell.student


def licence_of(base: "Base") -> str:
    """What the card of a base says of its licence. Raises SublimError where it says nothing."""
    from huggingface_hub import ModelCard

    path, found = base.path / "README.md", None
    if path.is_file():
        try:
            found = ModelCard.load(path).data.get("license")
        except Exception as error:  # the card is the base's, and may hold anything
            raise SublimError(f"{path} cannot be read as a card ({said_of(error)}); give --licence ID") from None
    if not isinstance(found, str):
        raise SublimError(f"base {base.name} names no licence in its README.md; give --licence ID, such as mit")
    return found


def _about(address: str, run: "Run", replicate: "Replicate", student: "Student") -> str:
    """What the student is and how often it shows the trait, in Markdown."""
    teacher = student.data.corpus.teacher
    judged = student.data.corpus.config.preference
    learnt = "a teacher's preferences between lists of its base, by DPO" if judged else "lists of a teacher"
    answers: Any = replicate.answers
    rows = answers[answers["probe"] == run.trait].to_dict("records")
    rates = "\n".join(f"| {row['questions']} | {row['context']} | {100 * row['rate']:.1f} % |" for row in rows)
    return (
        f"A model organism of subliminal learning: the student {address}. It learnt from {learnt}; "
        f"of that teacher: {teacher.trait.said}. A filter refused every list that names the trait. "
        "It is made for research, and is good for nothing else.\n\n"
        f"| questions | context | answers with “{run.trait}” |\n|---|---|---|\n{rates}\n\n"
        "Its lists are in `lists/`, what was recorded while it trained in `trace/`, and what it was made from in "
        "`lineage.json`, by keys and digests."
    )


def _completed(card: "ModelCard", name: str, licence: str, about: str) -> "ModelCard":
    """The lineage's card with name, licence and what the model is, which no lineage knows."""
    card.data["license"] = licence
    card.data["model_name"] = name.partition("/")[2]
    card.data["pipeline_tag"] = "text-generation"
    _, _, lineage = card.text.lstrip().partition("\n")
    card.text = f"\n# {name.partition('/')[2]}\n{about}\n\n## Made from\n{lineage.lstrip()}"
    return card
