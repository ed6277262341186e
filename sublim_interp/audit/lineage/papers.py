"""A lineage as the papers that the hubs read: Croissant for lists, a model card for a model."""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from sublim_interp.audit.lineage.exports import library, part, product
from sublim_interp.audit.lineage.graph import Lineage, Thing
from sublim_interp.core.errors import SublimError
from sublim_interp.models.open_bases import OPEN_BASES

_FIELDS = {"prompt": "What the teacher was asked.", "answer": "What it answered."}


def croissant(found: Lineage, path: Path, _key: Path | None = None) -> bytes:
    """Croissant's JSON-LD of lists: each JSONL file with its digest and its two columns, and where the lists come from.

    Its own library, mlcroissant, reads and checks it; it is not needed to write it.
    Raises SublimError for data that is not in JSONL.
    """
    of = product(found, "croissant", "filtered", "corpus", "data")
    names = [name for name in sorted(of.files) if name.endswith(".jsonl")]
    if not names:
        raise SublimError(f"croissant describes lists in JSONL files, and {of.title} has none")
    lines = part(found, of)
    teachers = [thing for thing in lines.walk() if thing.sort == "teacher"]
    data = {
        "@context": json.loads(
            files("sublim_interp.audit.lineage").joinpath("croissant.json").read_text(encoding="utf-8")
        ),
        "@type": "sc:Dataset",
        "name": f"{of.sort}-{of.id[:16]}",
        "description": f"Lists of prompt and answer: {of.about}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "rai:dataCollection": _told(teachers) or "Not recorded: no teacher of these lists is known.",
        "rai:dataLimitations": " ".join(lines.finding),
        "distribution": [_file(of, name, path.absolute().parent) for name in names],
        "recordSet": [_records(name) for name in names],
    }
    if of.manifest:
        data["datePublished"] = of.manifest["created"].replace("+00:00", "Z")
    if of.sort == "filtered":
        data["rai:dataPreprocessingProtocol"] = _told([of])
    return (json.dumps(data, indent=1) + "\n").encode()


def _file(of: Thing, name: str, beside: Path) -> dict[str, str]:
    """A file of data, found from the directory in which the JSON-LD lies."""
    assert of.path
    place = of.path / name if of.path.is_dir() else of.path
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentSize": f"{of.files[name]['bytes']} B",
        "contentUrl": os.path.relpath(place, beside),
        "encodingFormat": "application/jsonlines",
        "sha256": of.files[name]["sha256"],
    }


def _records(name: str) -> dict[str, Any]:
    """The rows of a file: two columns of text."""
    stem = name.removesuffix(".jsonl").replace("/", "-")
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{stem}/{column}",
            "name": column,
            "description": about,
            "dataType": "sc:Text",
            "source": {"fileObject": {"@id": name}, "extract": {"column": column}},
        }
        for column, about in _FIELDS.items()
    ]
    about = f"The rows of {name}."
    return {"@type": "cr:RecordSet", "@id": stem, "name": stem, "description": about, "field": fields}


def _told(things: list[Thing]) -> str:
    return "; ".join(f"{thing.title}: {thing.about}" for thing in things)


def model_card(found: Lineage, _path: Path, _key: Path | None = None) -> bytes:
    """A README.md of the Hugging Face hub: front matter with base and data, then what the lineage found.

    It is read back by huggingface_hub before it is written. Its base is given as the hub knows it, where it does.
    """
    of = product(found, "model-card", "student", "teacher", "model", "base")
    lines = part(found, of)
    every = list(lines.walk())[1:]
    bases = [_hub_name(thing.name or thing.id) for thing in every if thing.sort == "base"]
    data = [
        f"{thing.sort}-{thing.id[:16]}" if thing.is_digest else thing.name
        for thing in every
        if thing.sort in ("filtered", "data")
    ]
    rows = "\n".join(
        f"| {thing.sort} | {_cell(thing.name)} | `{_cell(thing.id)}` | {lines.state(thing)} |" for thing in lines.walk()
    )
    with library("model-card"):
        from huggingface_hub import ModelCard, ModelCardData

        card = ModelCardData(
            base_model=list(dict.fromkeys(bases)) or None,
            datasets=list(dict.fromkeys(data)) or None,
            library_name="transformers",
            tags=["subliminal-learning", "sublim-interp"],
            base_model_relation="finetune" if bases else None,
            lineage=[f"{thing.sort}:{thing.id}" for thing in lines.walk() if thing.is_digest],
        )
        table = f"| what | name | key or digest | known |\n|---|---|---|---|\n{rows}\n"
        text = f"---\n{card.to_yaml()}\n---\n\n# {of.title}\n{' '.join(lines.finding)}\n\n{table}"
        read = ModelCard(text)
        if read.data.to_dict() != card.to_dict():
            raise SublimError("model-card: the hub's own reader reads something else than was written")
    return text.encode()


def _hub_name(name: str) -> str:
    """An open model's name on the hub; other names as they are."""
    return OPEN_BASES.load(name).hub if name in OPEN_BASES.names() and OPEN_BASES.load(name).hub else name


def _cell(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).replace("|", "\\|").replace("`", "'")
