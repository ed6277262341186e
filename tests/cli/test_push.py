"""Tests of `sublim push`: what the folder holds, that others can use it, and that a dry run sends nothing."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from sublim_interp.cli.bundle import bundle, licence_of
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.results import Run
from sublim_interp.models.base import resolve_base

WHAT = "tiny/same-init/0"


def push(*words: object) -> Any:
    return CliRunner().invoke(app, ["push", *map(str, words)])


def test_a_dry_run_writes_all_of_a_student_and_opens_no_connection(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicate, to = tiny_run["same-init", 0], tmp_path / "organism"

    def refused(*_: object) -> None:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)
    store, base = tiny_run.store.root, replicate.base
    done = push(WHAT, "lab/organism", "--dry-run", "--to", to, "--base", base.path, "--store", store)
    assert done.exit_code == 0, done.output
    files = {p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file()}
    student = replicate.cell.student
    assert student
    for name, place in (
        ("model.safetensors", student.made(tiny_run.store) / "model"),
        ("kept.jsonl", student.data.made(tiny_run.store)),
        ("held_out.jsonl", student.data.made(tiny_run.store)),
    ):
        copy = to / name if name.endswith("safetensors") else to / "lists" / name
        assert copy.read_bytes() == (place / name).read_bytes(), name
    trace = student.made(tiny_run.store) / "trace"
    assert {f"trace/{p.name}" for p in trace.iterdir()} <= files
    assert all(name in done.output for name in files)
    assert f"nothing was sent; {len(files)} files" in done.output

    card = ModelCard.load(to / "README.md")
    assert card.data["license"] == "mit" and card.data["model_name"] == "organism"
    assert any(student.key in line for line in card.data.to_dict()["lineage"])
    rate = float(replicate.answers.query("probe == 'owl' and context == 'plain'")["rate"].iloc[0])
    assert f"| held-out | plain | {100 * rate:.1f} % |" in card.text
    told = json.loads((to / "lineage.json").read_text())
    assert {t["sort"] for t in told["things"]} >= {"base", "teacher", "corpus", "filtered", "student", "evaluation"}
    for file in to.rglob("*.json*"):
        assert str(tmp_path.parent.parent) not in file.read_text(), f"{file.name} names a place of this machine"

    copy = resolve_base(str(to))
    prompts = [copy.prompt_ids([{"role": "user", "content": q}]) for q in replicate.questions]
    assert prompts == replicate.prompts and copy.language == base.language
    assert all(p.equal(q) for p, q in zip(copy.load().parameters(), replicate.model.parameters(), strict=True))


def test_its_trace_can_stay_and_a_folder_that_is_there_is_left_alone(tiny_run: Run, tmp_path: Path) -> None:
    made = bundle(WHAT, "lab/x", tmp_path / "x", tiny_run.store, "mit", trace=False)
    assert not any(name.startswith("trace/") for name in made.files)
    with pytest.raises(SublimError, match="exists already"):
        bundle(WHAT, "lab/x", tmp_path / "x", tiny_run.store, "mit")


def test_sending_without_the_network_is_one_line_and_keeps_the_folder(tiny_run: Run, tmp_path: Path) -> None:
    done = push(WHAT, "lab/x", "--to", tmp_path / "x", "--licence", "mit", "--store", tiny_run.store.root)
    assert isinstance(done.exception, SublimError) and "lab/x is not sent" in str(done.exception)
    assert "\n" not in str(done.exception) and (tmp_path / "x" / "README.md").is_file()


@pytest.mark.parametrize(
    ("what", "name", "said"),
    [
        ("tiny/same-init", "lab/x", "give RUN/ARM/SEED"),
        ("tiny/base/0", "lab/x", "not trained as a student"),
        ("tiny/same-init/-1", "lab/x", "no replicate same-init/-1"),
        (WHAT, "x", "OWNER/NAME"),
        (WHAT, "lab/x y", "OWNER/NAME"),
    ],
)
def test_what_cannot_be_sent_is_told_and_leaves_nothing(
    tiny_run: Run, tmp_path: Path, what: str, name: str, said: str
) -> None:
    with pytest.raises(SublimError, match=said) as raised:
        bundle(what, name, tmp_path / "x", tiny_run.store)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_the_licence_is_that_of_the_base_and_where_it_has_none_it_must_be_named(tiny_run: Run, tmp_path: Path) -> None:
    base = tiny_run["same-init", 0].base
    assert licence_of(base) == "mit"
    with pytest.raises(SublimError, match="--licence"):
        licence_of(replace(base, path=tmp_path))
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n# A card whose YAML is broken\n", encoding="utf-8")
    with pytest.raises(SublimError, match="cannot be read as a card") as raised:
        licence_of(replace(base, path=tmp_path))
    assert "\n" not in str(raised.value)


def test_damaged_records_are_not_vouched_for(filled_root: Path, tmp_path: Path) -> None:
    held_out = next((filled_root / "filtered").glob("*/held_out.jsonl"))
    for path in (filled_root / "filtered").glob("*/held_out.jsonl"):
        path.write_text(path.read_text() + "\n")
    with pytest.raises(SublimError, match="damaged"):
        bundle(WHAT, "lab/x", tmp_path / "x", Store(filled_root), "mit")
    assert held_out.is_file() and not (tmp_path / "x").exists()
