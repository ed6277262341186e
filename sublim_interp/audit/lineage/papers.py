"""A lineage as the papers that the hubs read: Croissant for lists, a model card for a model."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from sublim_interp.audit.lineage.exports import library, part, product
from sublim_interp.audit.lineage.graph import Lineage, Thing
from sublim_interp.core.errors import SublimError
from sublim_interp.models.open_bases import OPEN_BASES

_FIELDS = {"prompt": "What the teacher was asked.", "answer": "What it answered."}


def croissant(found: Lineage, path: Path, _key: Path | None = None) -> bytes:
    """Croissant's JSON-LD of lists: each JSONL file with its digest and its two columns, and where the lists come from.

    Raises SublimError for data that is not in JSONL.
    """
    of = product(found, "croissant", "filtered", "corpus", "data")
    names = [name for name in sorted(of.files) if name.endswith(".jsonl")]
    if not names:
        raise SublimError(f"croissant describes lists in JSONL files, and {of.title} has none")
    lines = part(found, of)
    teachers = [thing for thing in lines.walk() if thing.sort == "teacher"]
    assert of.path
    with library("croissant"):
        import mlcroissant as mlc

        file_objects: list[Any] = [
            mlc.FileObject(
                id=name,
                name=name,
                content_url=os.path.relpath(_path_of(of, name), path.absolute().parent),
                encoding_formats=["application/jsonlines"],
                sha256=of.files[name]["sha256"],
                content_size=f"{of.files[name]['bytes']} B",
            )
            for name in names
        ]
        records = [_records(mlc, name) for name in names]
        made = of.manifest.get("created")
        metadata = mlc.Metadata(
            name=f"{of.sort}-{of.id[:16]}",
            description=f"Lists of prompt and answer: {of.about}.",
            date_published=datetime.fromisoformat(made) if made else None,
            data_collection=_told(teachers) or "Not recorded: no teacher of these lists is known.",
            data_preprocessing_protocol=[_told([of])] if of.sort == "filtered" else [],
            data_limitations=" ".join(lines.finding),
            distribution=file_objects,
            record_sets=records,
        )
        text = json.dumps(metadata.to_json(), indent=1, default=str)
    return (text + "\n").encode()


def _path_of(of: Thing, name: str) -> Path:
    assert of.path
    return of.path / name if of.path.is_dir() else of.path


def _records(mlc: Any, name: str) -> Any:
    stem = name.removesuffix(".jsonl").replace("/", "-")
    fields = [
        mlc.Field(
            id=f"{stem}/{column}",
            name=column,
            description=about,
            data_types=[mlc.DataType.TEXT],
            source=mlc.Source(file_object=name, extract=mlc.Extract(column=column)),
        )
        for column, about in _FIELDS.items()
    ]
    return mlc.RecordSet(id=stem, name=stem, description=f"The rows of {name}.", fields=fields)


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
        body = f"# {of.title}\n{' '.join(lines.finding)}\n\n| what | name | key or digest | known |\n|---|---|---|---|\n{rows}\n"
        text = f"---\n{card.to_yaml()}\n---\n\n{body}"
        read = ModelCard(text)
        if read.data.to_dict() != card.to_dict():
            raise SublimError("model-card: the hub's own reader reads something else than was written")
    return text.encode()


def _hub_name(name: str) -> str:
    """An open model's name on the hub; other names as they are."""
    return OPEN_BASES.load(name).hub if name in OPEN_BASES.names() and OPEN_BASES.load(name).hub else name


def _cell(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).replace("|", "\\|").replace("`", "'")
