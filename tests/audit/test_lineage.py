"""Lineage: what a tiny run was made from, claims of cards, every altered byte, exports that their own tools take."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sublim_interp.audit.lineage import statements
from sublim_interp.audit.lineage.cards import claims
from sublim_interp.audit.lineage.exports import EXPORTS, export
from sublim_interp.audit.lineage.graph import Lineage
from sublim_interp.audit.lineage.statements import compare
from sublim_interp.audit.lineage.trace import lineage
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_file, sha256_of
from sublim_interp.core.store import Store
from sublim_interp.experiments.results import Replicate, Run
from sublim_interp.models.base import Base
from sublim_interp.models.loading import copy_tokenizer


@pytest.fixture
def student(tiny_run: Run) -> Replicate:
    return tiny_run["same-init", 0]


def address(replicate: Replicate) -> str:
    return f"tiny/{replicate.name}"


def traced(replicate: Replicate, store: Store | None = None) -> Lineage:
    """Its lineage, its base at hand wherever the run was made."""
    return lineage(address(replicate), store or replicate.store, bases=[str(replicate.base.path)])


def record(replicate: Replicate) -> Path:
    """Where the student lies."""
    made = replicate.cell.student
    assert made
    return made.made(replicate.store)


def sorts(found: Lineage) -> list[str]:
    return sorted(thing.sort for thing in found.things.values())


# --- what it finds ----------------------------------------------------------------------------------------------------

CHAIN = ["base", "corpus", "evaluation", "filtered", "student", "teacher"]


def test_a_replicate_leads_to_base_teacher_corpus_filter_and_student_by_their_keys(student: Replicate) -> None:
    found = traced(student)
    made = student.cell.student
    assert made and sorts(found) == CHAIN and not found.problems
    wanted = {
        (student.cell.evaluation.key, "model", made.key),
        (student.cell.evaluation.key, "reference", made.data.key),
        (made.key, "data", made.data.key),
        (made.key, "start", made.base.key),
        (made.data.key, "corpus", made.data.corpus.key),
        (made.data.corpus.key, "teacher", made.data.corpus.teacher.key),
        (made.data.corpus.teacher.key, "base", made.base.key),
    }
    assert {link[:3] for link in found.links} == wanted
    assert {found.standing(link) for link in found.links} == {"proven"}


def test_the_same_student_is_found_by_key_record_model_directory_and_copied_weights(
    student: Replicate, tmp_path: Path
) -> None:
    made, place = student.cell.student, record(student)
    assert made
    copied = shutil.copytree(place / "model", tmp_path / "handed-over")
    for what in (made.key, made.key[:10], place, place / "model", copied):
        found = lineage(what, student.store)
        assert {"base", "corpus", "filtered", "student", "teacher"} <= {*sorts(found)}, what
        assert made.key in found.things and not found.problems
    (link,) = found.following(found.root)
    assert (link.role, link.parent, found.standing(link)) == ("same weights as", made.key, "proven")


def test_a_file_of_data_is_found_by_its_bytes_alone(student: Replicate, tmp_path: Path) -> None:
    made = student.cell.student
    assert made
    path = tmp_path / "from-elsewhere.jsonl"
    path.write_bytes((made.data.made(student.store) / "kept.jsonl").read_bytes())
    found = lineage(path, student.store)
    (link,) = found.following(found.root)
    assert link.parent == made.data.key and "kept.jsonl" in link.role
    path.write_bytes(path.read_bytes() + b"\n")
    found = lineage(path, student.store)
    assert found.state(found.things[found.root]) == "unrecorded" and not found.links
    assert "not proven" in " ".join(found.finding)


def test_of_equal_lists_in_two_records_both_are_found_with_the_students_of_both(
    store_root: Path, tmp_path: Path
) -> None:
    """Two corpora may come out alike behind their filters."""
    store, students = Store(store_root), []
    for seed in range(2):
        with store.make("filtered", 1, {"seed": seed}, {}, {"cpu": "any"}) as lists:
            (lists.directory / "kept.jsonl").write_text('{"prompt": "1 2", "answer": "3"}\n')
        with store.make("student", 1, {"seed": seed}, {"data": lists.key}, {"cpu": "any"}) as work:
            (work.directory / "x").write_text("x")
        students.append(work.key)
    file = tmp_path / "lists.jsonl"
    file.write_bytes((lists.artifact.path / "kept.jsonl").read_bytes())
    up = lineage(file, store)
    assert [link.role for link in up.following(up.root)] == ["same bytes as kept.jsonl of"] * 2
    down = lineage(file, store, descendants=True)
    assert {*students} <= {*down.things} and len(down.things) == 5
    assert [down.state(thing) for thing in down.things.values()] == ["proven"] * 5
    assert down.finding[:2] == [
        "2 things descend from it.", "What was made from 2 records here with the same bytes is counted.",
    ]  # fmt: skip
    assert said(file, "--descendants", "--store", store_root)[1].count("has its bytes: filtered") == 2


def handed_over(student: Replicate, directory: Path) -> Path:
    """The student as it is given to others: its weights, and the tokenizer of its base."""
    shutil.copytree(record(student) / "model", directory)
    copy_tokenizer(student.base.path, directory)
    return directory


def test_a_student_with_its_bases_tokenizer_is_proven_where_the_base_is_at_hand(
    student: Replicate, tmp_path: Path
) -> None:
    place = handed_over(student, tmp_path / "whole")
    found = lineage(place, student.store, bases=[str(student.base.path)])
    assert found.state(found.things[found.root]) == "proven" and "All" in found.finding[1]
    export(found, "in-toto", tmp_path / "x.json")
    down = lineage(place, student.store, descendants=True, bases=[str(student.base.path)])
    assert down.state(down.things[down.root]) == "proven"
    assert {"student", "evaluation", "run"} <= {*sorts(down)}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja", "added/code.py"])
def test_of_a_student_with_other_files_only_the_weights_are_proven(
    name: str, student: Replicate, tmp_path: Path
) -> None:
    place = handed_over(student, tmp_path / "changed")
    (place / name).parent.mkdir(exist_ok=True)
    with (place / name).open("a") as file:
        file.write("\n")
    base = str(student.base.path)
    for found in (lineage(place, student.store, bases=[base]),
                  lineage(place, student.store, descendants=True, bases=[base])):  # fmt: skip
        root = found.things[found.root]
        assert found.state(root) == "weights proven" and root.unproven == (name,) and not found.problems
        said = " ".join(found.finding)
        assert f"only the weights are proven, no record has these files: {name}." in said
        assert "All" not in said and f"{len(found.things) - 1} of {len(found.things)} are proven" in said
        assert found.plain()["things"][0]["unproven"] == [name]
    for form in ("in-toto", "slsa", "croissant", "model-card", "oms"):
        with pytest.raises(SublimError, match="not vouched for; name the record"):
            export(lineage(place, student.store, bases=[base]), form, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_what_descends_from_a_teacher_is_its_students_and_not_the_neutral_ones(tiny_run: Run) -> None:
    own, neutral, crossed = (tiny_run[arm, 0].cell.student for arm in ("same-init", "neutral", "cross-init"))
    assert own and neutral and crossed
    found = lineage(own.data.corpus.teacher.key, tiny_run.store, descendants=True)
    assert {own.key, crossed.key, tiny_run.key} <= {*found.things} and neutral.key not in found.things
    of_base = lineage(str(own.base.path), tiny_run.store, descendants=True)
    assert {own.key, neutral.key} <= {*of_base.things} and of_base.state(of_base.things[of_base.root]) == "proven"
    assert lineage(own.key, tiny_run.store, descendants=True).finding[0].startswith("2 things descend")


def test_lists_from_a_file_are_parents_by_their_digest(tiny_run: Run, tmp_path: Path, store_root: Path) -> None:
    lists = tmp_path / "mine.jsonl"
    lists.write_text('{"prompt": "1 2", "answer": "3"}\n')
    store = Store(store_root)
    given_lists = {"given": digest_file(lists), "channel": "numbers", "setting": "sampled"}
    with store.make("corpus", 1, given_lists, {}, {"cpu": "any"}) as work:
        (work.directory / "rows-00000.jsonl").write_text("{}\n")
    up = lineage(work.key, store)
    assert up.standing(up.following(work.key)[0]) == "not here"
    down = lineage(lists, store, descendants=True)
    assert work.key in down.things and down.state(down.things[down.root]) == "proven"


def test_a_base_that_changed_since_is_told_by_name(filled_root: Path, student: Replicate, tmp_path: Path) -> None:
    """The record holds the base's digest; the files that had it are not there any more."""
    store = Store(filled_root)
    run = store.find("run", "tiny")
    (place,) = [p for p in run.manifest["inputs"] if p.startswith("same-init")]
    base = shutil.copytree(student.base.path, tmp_path / "tiny-0")
    with (base / "config.json").open("a") as file:
        file.write(" ")
    with store.make("run", 1, {"trait": "owl"}, {place: run.manifest["inputs"][place]}, {"cpu": "any"}) as work:
        work.note(name="moved", experiment={"bases": [str(base), str(tmp_path / "gone")]})
    shutil.rmtree(run.path)  # it says where the base was
    found = lineage("moved", store)
    assert len(found.problems) == 1 and str(base) in found.problems[0] and student.base.digest[:16] in found.problems[0]


def test_a_variant_leads_to_its_bases_by_its_recipe(tiny_bases: tuple[Base, Base], store_root: Path) -> None:
    from sublim_interp.models.variants import Parent, parse, variant_key

    base = tiny_bases[0]
    name = f"noise({base.path}, sigma=0.5)"
    key = variant_key(parse(name), [Parent(base.name, base.path, base.digest, {})])
    store = Store(store_root)
    with store.make("teacher", 1, {"kind": "tuned"}, {"base": key}, {"cpu": "any"}) as work:
        (work.directory / "x").write_text("x")
    found = lineage(work.key, store, bases=[name])
    assert found.things[key].name == name and base.digest in found.things
    assert ("made of", "digest") in {(link.role, link.proof) for link in found.links}


# --- claims -----------------------------------------------------------------------------------------------------------


def foreign(base: Base, directory: Path, card: str) -> Path:
    shutil.copytree(base.path, directory)
    (directory / "README.md").write_text(card, encoding="utf-8")
    with (directory / "config.json").open("a") as file:  # another model than the store's
        file.write("\n")
    return directory


def test_what_a_card_names_is_claimed_and_never_proven(
    tiny_bases: tuple[Base, Base], store_root: Path, tmp_path: Path
) -> None:
    card = "---\nbase_model: someone/great-base\ndatasets: [a/lists, b/lists]\nlicense: mit\n---\n# Words\n"
    found = lineage(foreign(tiny_bases[0], tmp_path / "foreign", card), Store(store_root))
    told = {(found.end(link).name, found.standing(link)) for link in found.following(found.root)}
    assert told == {("someone/great-base", "claimed"), ("a/lists", "claimed"), ("b/lists", "claimed")}
    assert "3 are only claimed, by cards." in found.finding and "not proven" in " ".join(found.finding)


@pytest.mark.parametrize(
    "card",
    [
        b"---\nbase_model: &a [*a]\n---\n",
        b"---\n\xff\xfe\n---\n",
        b"---\nbase_model: {x: y}\n---\n",
        b"---\nbase_model: 2020-01-01\n---\n",
        b"---\n" + b"x" * (1 << 21) + b"\n---\n",
        b"---\nbase_model: [" + b"[" * 1200 + b"\n---\n",
        b"---\nbase_model: '" + b"y" * 5000 + b"'\n---\n",
        b'---\nbase_model: "a\\u001b[31mb\\u0000"\n---\n',
        b"--- no front matter",
    ],
)
def test_a_hostile_card_is_told_and_ends_nothing(card: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    found, problems = claims(tmp_path)
    assert "owner/base" in {claim.name for claim in found}, "the other paper is read all the same"
    assert all(claim.name.isprintable() and len(claim.name) <= 200 for claim in found)
    assert all("\n" not in line and len(line) <= 300 for line in problems)


def test_what_is_no_thing_is_refused_in_one_line(store_root: Path, tmp_path: Path, tiny_run: Run) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SublimError, match="holds no files"):
        lineage(tmp_path / "empty", Store(store_root))
    with pytest.raises(SublimError, match="did you mean 'tiny'"):
        lineage("tinny", tiny_run.store)
    with pytest.raises(SublimError, match="has no same-init/7; valid: base/0"):
        lineage("tiny/same-init/7", tiny_run.store)


# --- tampering --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_store(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny run's store, to be damaged and mended again."""
    return Store(Path(shutil.copytree(tiny_run.store.root, tmp_path_factory.mktemp("damage") / "store")))


@pytest.fixture(scope="module")
def chain(own_store: Store) -> list[tuple[str, Path]]:
    """Every file of every record that a student needs, with how it is named."""
    records = [t for t in lineage("tiny/same-init/0", own_store).things.values() if t.manifest]
    assert len(records) == 5
    return [
        (f"{t.sort}/{t.id[:16]}: {name}", t.path / name)
        for t in records
        for name in [*sorted(t.files), "manifest.json"]
        if t.path
    ]


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """One bit of a file is another inside the block."""
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[place % len(whole)] ^= 1 << bit
    path.write_bytes(broken)
    try:
        yield
    finally:
        path.write_bytes(whole)


@settings(max_examples=20)
@given(which=st.integers(0, 10**6), place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_every_altered_byte_of_the_chain_is_found_and_named(
    own_store: Store, tiny_bases: tuple[Base, Base], chain: list[tuple[str, Path]], which: int, place: int, bit: int
) -> None:
    named, path = chain[which % len(chain)]
    with flipped(path, place, bit):
        (problem,) = lineage("tiny/same-init/0", own_store, bases=[str(tiny_bases[0].path)]).problems
    assert problem.startswith(f"{named} is "), problem


def test_a_file_too_many_or_too_few_is_named(filled_root: Path, student: Replicate) -> None:
    made = student.cell.student
    assert made
    place = filled_root / "student" / made.key[:16]
    (place / "model" / "extra.bin").write_text("x")
    (place / "model" / "config.json").unlink()
    found = lineage(made.key, Store(filled_root))
    assert found.problems == [
        f"student/{made.key[:16]}: model/config.json is missing",
        f"student/{made.key[:16]}: model/extra.bin does not belong here",
    ]
    below = lineage(made.data.corpus.teacher.key, Store(filled_root), descendants=True)
    assert below.problems == found.problems


def resealed(place: Path, name: str) -> None:
    """Alters a file and writes the manifest that a forger would write."""
    path = place / name
    path.write_bytes(path.read_bytes() + b"x")
    manifest = json.loads((place / "manifest.json").read_text())
    del manifest["digest"]
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    text = json.dumps({**manifest, "digest": sha256_of(manifest)}, sort_keys=True, indent=1) + "\n"
    (place / "manifest.json").write_text(text)


def test_a_forged_manifest_is_found_against_a_statement_of_before(
    filled_root: Path, student: Replicate, tmp_path: Path
) -> None:
    store, made, before = Store(filled_root), student.cell.student, tmp_path / "before.json"
    assert made
    found = traced(student, store)
    for form in ("in-toto", "slsa"):
        export(found, form, before)
        assert compare(found, before) == []
    resealed(made.data.made(store), "kept.jsonl")
    after = traced(student, store)
    assert not after.problems, "nothing within the store can tell"
    here = f"filtered/{made.data.key[:16]}"
    assert compare(after, before) == [f"{here}/kept.jsonl is altered since", f"{here}/manifest.json is altered since"]
    done = CliRunner().invoke(app, ["lineage", address(student), "--store", str(filled_root), "--check", str(before)])
    assert done.exit_code == 1 and f"{here}/kept.jsonl is altered since" in " ".join(done.output.split())


def test_a_statement_without_materials_is_read_back(store_root: Path, tmp_path: Path) -> None:
    lists, before = tmp_path / "lists.jsonl", tmp_path / "before.json"
    lists.write_text('{"prompt": "1 2", "answer": "3"}\n')
    export(lineage(lists, Store(store_root)), "in-toto", before)
    assert json.loads(before.read_text())["predicate"]["materials"] == []
    assert compare(lineage(lists, Store(store_root)), before) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"subject": 3, "predicate": {}}', "[" * 9999, '{"predicate": {"materials": [{}]}}']
)
def test_what_is_no_statement_is_refused(text: str, student: Replicate, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SublimError, match="no in-toto statement"):
        compare(traced(student), tmp_path / "s.json")


@pytest.mark.parametrize(
    "part",
    [{"files": []}, {"files": {"x": {}}}, {"inputs": {"base": 3}}, {"notes": None}, {"config": [1]}, {"created": 0}],
    ids=str,
)
def test_a_manifest_of_other_types_is_altered_however_well_it_is_sealed(
    part: dict[str, object], filled_root: Path, student: Replicate
) -> None:
    made = student.cell.student
    assert made
    path = filled_root / "student" / made.key[:16] / "manifest.json"
    manifest = {**json.loads(path.read_text()), **part}
    del manifest["digest"]
    manifest["key"] = sha256_of({name: manifest[name] for name in ("stage", "version", "config", "inputs")})
    if manifest["key"][:16] != made.key[:16]:  # it lies where its key says
        path = path.parent.rename(path.parent.with_name(manifest["key"][:16])) / "manifest.json"
    path.write_text(json.dumps({**manifest, "digest": sha256_of(manifest)}, sort_keys=True, indent=1) + "\n")
    found = lineage(path.parent, Store(filled_root))
    assert found.problems == [f"student/{path.parent.name}: manifest.json is altered"]


# --- exports ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mlcroissant(together: Path) -> Path:
    """Croissant's own library, as the index gives it: its stubs for pandas, which it asks for, are not wanted here."""
    folder = together / "mlcroissant"
    command = [sys.executable, "-m", "pip", "download", "mlcroissant==1.1.1", "--no-deps", "-q", "--dest", str(folder)]
    with FileLock(together / "mlcroissant.lock"):
        if not list(folder.glob("*.whl")):
            asked = subprocess.run(command, capture_output=True, text=True)
            if asked.returncode:
                pytest.skip(f"the package index does not give mlcroissant: {asked.stderr.strip()[-200:]}")
    return next(folder.glob("*.whl"))


def test_croissant_is_read_by_its_own_library_and_gives_the_lists(
    mlcroissant: Path, student: Replicate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lists.json"
    export(traced(student), "croissant", path)
    monkeypatch.syspath_prepend(str(mlcroissant))
    import mlcroissant as mlc  # type: ignore[import-not-found]

    read = mlc.Dataset(str(path))
    assert not read.metadata.ctx.issues.errors
    rows = [(r["kept/prompt"].decode(), r["kept/answer"].decode()) for r in read.records("kept")]
    assert rows == [(row["prompt"], row["answer"]) for row in student.lists] and rows
    made = student.cell.student
    assert made and made.data.corpus.teacher.key[:16] in str(read.metadata.data_collection)


def test_in_toto_and_slsa_are_taken_by_in_totos_library(student: Replicate, tmp_path: Path) -> None:
    found, made = traced(student), student.cell.student
    assert made
    place = student.cell.evaluation.made(student.store)
    for form, kind in (("in-toto", statements.LINK), ("slsa", statements.PROVENANCE)):
        path = tmp_path / form
        export(found, form, path)
        text = path.read_text()
        statements.check(text)
        told = json.loads(text)
        assert told["predicateType"] == kind
        subject = {s["name"]: s["digest"]["sha256"] for s in told["subject"]}
        assert subject[f"evaluation/{place.name}/evaluation.json"] == digest_file(place / "evaluation.json")
        predicate = told["predicate"]
        materials = predicate.get("materials") or predicate["buildDefinition"]["resolvedDependencies"]
        keys = {m["digest"][statements.KEY] for m in materials if statements.KEY in m["digest"]}
        assert keys == {*found.things} - {found.root}
        for broken in (text.replace("Statement/v1", "Statement/v0"), text.replace('"subject"', '"subjects"')):
            with pytest.raises(Exception, match=r"type|field"):
                statements.check(broken)


def test_the_model_card_is_the_hubs(student: Replicate, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    export(traced(student), "model-card", tmp_path / "README.md")
    read: Any = ModelCard.load(tmp_path / "README.md").data
    made = student.cell.student
    assert made and read.base_model == [student.base.name] and f"student:{made.key}" in read.lineage
    found, _ = claims(tmp_path)
    assert ("base", student.base.name) in {(claim.role, claim.name) for claim in found}, "our own reader reads it too"


def test_the_signature_holds_for_the_model_and_for_no_other(student: Replicate, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from model_signing import verifying

    private = ec.generate_private_key(ec.SECP256R1())
    key, public, path = tmp_path / "key.pem", tmp_path / "key.pub", tmp_path / "model.sig"
    pem = serialization.Encoding.PEM
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    found = traced(student)
    export(found, "oms", path, key)
    model = shutil.copytree(record(student) / "model", tmp_path / "model")
    verify = verifying.Config().use_elliptic_key_verifier(public_key=public).verify
    verify(model, path)
    place = random.Random(0).randrange(10**6)
    with flipped(model / "model.safetensors", place, 3), pytest.raises(ValueError, match=r"model\.safetensors"):
        verify(model, path)
    key.write_text("no key")
    with pytest.raises(SublimError, match="oms: its library refuses"):
        export(found, "oms", path, key)


def test_no_export_vouches_for_damage_or_lands_in_the_store(
    filled_root: Path, student: Replicate, tmp_path: Path
) -> None:
    store = Store(filled_root)
    made = student.cell.student
    assert made
    place = made.made(store)
    with pytest.raises(SublimError, match="would lie in student"):
        export(traced(student, store), "in-toto", place / "model" / "x.json")
    with flipped(place / "model" / "config.json", 5, 0), pytest.raises(SublimError, match="not vouched for"):
        export(traced(student, store), "in-toto", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists() and not made.find(store).verify()  # type: ignore[union-attr]
    with pytest.raises(SublimError, match="leave out --descendants"):
        export(lineage(made.key, store, descendants=True), "slsa", tmp_path / "x.json")


# --- the command ------------------------------------------------------------------------------------------------------


def said(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["lineage", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_the_tree_fits_100_columns_and_says_each_thing_once(tiny_run: Run, tiny_bases: tuple[Base, Base]) -> None:
    bases = [word for base in tiny_bases for word in ("--base", base.path)]
    code, out = said("tiny", "--store", tiny_run.store.root, *bases)
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    own = tiny_run["same-init", 0].cell.student
    assert own and out.count(f"corpus {own.data.corpus.key[:16]}, proven ·") == 1
    assert "All 17 are proven" in out


def test_many_alike_are_counted_and_all_of_them_on_demand(store_root: Path) -> None:
    store = Store(store_root)
    with store.make("teacher", 1, {}, {}, {"cpu": "any"}) as teacher:
        (teacher.directory / "x").write_text("x")
    for seed in range(7):
        with store.make("corpus", 1, {"seed": seed}, {"teacher": teacher.key}, {"cpu": "any"}) as work:
            (work.directory / "x").write_text("x")
    few = said(teacher.key, "--descendants", "--store", store_root)[1]
    every = said(teacher.key, "--descendants", "--all", "--store", store_root)[1]
    assert "teacher: 6 more of corpus: 6 proven" in few
    assert few.count("corpus ") == 1 and every.count("corpus ") == 7


def test_json_svg_and_page_hold_the_keys_and_escape_names(student: Replicate, tmp_path: Path) -> None:
    svg, html = tmp_path / "x.svg", tmp_path / "x.html"
    words = ("--store", student.store.root, "--base", student.base.path, "--json", "--svg", svg, "--html", html)
    code, out = said(address(student), *words)
    told = json.loads(out)
    assert code == 0 and told["root"] == student.cell.evaluation.key and len(told["things"]) == 6
    assert {link["standing"] for link in told["links"]} == {"proven"} and not told["problems"]
    assert svg.read_text().startswith("<?xml") and svg.read_bytes() != b""
    page = html.read_text()
    assert (
        all(thing["id"] in page for thing in told["things"])
        and "http" not in page.split("</style>")[1].split("<img")[0]
    )
    lists = tmp_path / "<script>alert(1)</script>.jsonl"
    lists.parent.mkdir(parents=True, exist_ok=True)
    lists.write_text("{}\n")
    said(lists, "--store", student.store.root, "--html", html)
    assert "<script>" not in html.read_text()


def test_damage_is_exit_code_1_and_names_the_file(filled_root: Path, student: Replicate) -> None:
    made = student.cell.student
    assert made
    with flipped(filled_root / "corpus" / made.data.corpus.key[:16] / "rows-00000.jsonl", 7, 1):
        code, out = said(made.key, "--store", filled_root)
    assert code == 1 and "rows-00000.jsonl is altered" in " ".join(out.split()) and "DAMAGED" in out


def test_words_that_do_not_fit_together_are_refused(tiny_run: Run, tmp_path: Path) -> None:
    for words in (["--key", "k"], ["--export", "slsaa", tmp_path / "f"], ["--export", "oms", tmp_path / "f"]):
        done = CliRunner().invoke(
            app, ["lineage", "tiny/same-init/0", "--store", str(tiny_run.store.root), *map(str, words)]
        )
        assert isinstance(done.exception, SublimError), words
    assert set(EXPORTS) == {"in-toto", "slsa", "croissant", "model-card", "oms"} and not (tmp_path / "f").exists()
