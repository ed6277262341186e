"""Tests of a store's upkeep: its index, what may be removed, and what goes from store to store."""

import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.large_store import fill
from sublim_interp.cli.main import app
from sublim_interp.core import exchange
from sublim_interp.core import index as indexes
from sublim_interp.core.errors import SublimError
from sublim_interp.core.exchange import take
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store
from sublim_interp.core.upkeep import garbage, lineage, remove

PRINT = {"torch": "2.13.0", "threads": 1}
ENDS = ("run", "sweep", "study")


def make(
    store: Store, stage: str, number: int = 0, inputs: tuple[Artifact, ...] = (), name: str = "", data: str = "rows"
) -> Artifact:
    keys = {f"input-{i}": given.key for i, given in enumerate(inputs)} | {"base": "b" * 64}
    with store.make(stage, 1, {"number": number}, keys, PRINT) as work:
        if not work.done:
            write_atomic(work.directory / "data", data)
            if name:
                work.note(name=name, experiment={"trait": "owl", "bases": [], "seeds": [0]})
    return work.artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs that share a teacher, a student that no run needs, and a corpus that belongs to nothing."""
    found = Store(tmp_path / "store")
    teacher = make(found, "teacher")
    for number, name in enumerate(("owls", "wolves")):
        make(found, "run", number, (make(found, "student", number, (teacher,)),), name)
    make(found, "student", 2, (teacher,))
    make(found, "corpus", 3)
    return found


def said(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, SublimError), repr(done.exception)
        return 2, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


# --- the index --------------------------------------------------------------------------------------------------------


def test_the_index_says_what_manifests_say_and_may_be_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (store.root / indexes.INDEX).exists(), "a small store needs none"
    before = store.index()
    monkeypatch.setattr(indexes, "_WORTH", 1)
    assert store.index() == before and (store.root / indexes.INDEX).exists()
    for artifact in store.list():
        row = before[artifact.key[:16]]
        assert (row.stage, row.key, row.name) == (artifact.stage, artifact.key, artifact.name)
        assert row.inputs == tuple(key[:16] for key in artifact.manifest["inputs"].values()) and row.size == 4
    more = make(store, "corpus", 9)
    shutil.rmtree(store.find("run", "wolves").path)
    after = store.index()
    assert more.key[:16] in after and "wolves" not in {row.name for row in after.values()}
    (store.root / indexes.INDEX).unlink()
    assert store.index() == after


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "stages": {"run": {"x": 1}}}', '{"version": 0}'])
def test_an_index_that_is_nothing_of_ours_is_made_again(store: Store, text: str) -> None:
    before = store.index()
    (store.root / indexes.INDEX).write_text(text)
    assert store.index() == before
    stages = {a.stage: {a.key[:16]: text} for a in store.list()}
    (store.root / indexes.INDEX).write_text(json.dumps({"version": 1, "stages": stages}))
    assert store.index() == before


def test_a_damaged_artefact_is_in_no_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_WORTH", 1)
    store.index()
    path = store.find("run", "owls").path / "manifest.json"
    path.write_text(path.read_text().replace("owls", "owns"))
    assert {row.name for row in store.index().values() if row.stage == "run"} == {"wolves"}
    assert store.damaged() == [path.parent] and store.matches("run", "owls") == []


def test_a_store_that_cannot_be_written_is_read_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SublimError("a file system that is only read")

    monkeypatch.setattr(indexes, "_WORTH", 1)
    monkeypatch.setattr(indexes, "write_atomic", refuse)
    assert len(store.index()) == 7


# --- what may be removed ----------------------------------------------------------------------------------------------


def test_nothing_that_a_run_needs_is_removed_and_the_young_are_left_alone(store: Store) -> None:
    everything = {a.key for a in store.list()}
    assert garbage(store, ENDS).rows == ()
    found = garbage(store, ENDS, days=0.0)
    assert sorted(row.stage for row in found.rows) == ["corpus", "student"] and found.size == 8
    assert {a.key for a in store.list()} == everything, "to look removes nothing"
    remove(store, found)
    assert everything - {a.key for a in store.list()} == {row.key for row in found.rows}
    assert all(not problems for _, problems in store.verify())
    assert garbage(store, ENDS, days=0.0).rows == ()


def test_a_run_that_is_dropped_takes_along_what_nothing_else_needs(store: Store) -> None:
    owls = store.find("run", "owls")
    found = garbage(store, ENDS, drop=[owls.key])
    assert [row.stage for row in found.rows] == ["run", "student"], "the run before what it was made from"
    needed = garbage(store, ENDS, drop=[owls.key], needed=[owls.manifest["inputs"]["input-0"]])
    assert [row.stage for row in needed.rows] == ["run"]


@given(st.data())
@settings(max_examples=12)
def test_of_any_graph_what_is_left_is_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = Store(tmp_path_factory.mktemp("graph"))
    made: list[Artifact] = []
    for number in range(data.draw(st.integers(1, 6))):
        inputs = data.draw(st.lists(st.sampled_from(made), max_size=2, unique_by=lambda a: a.key)) if made else []
        made.append(make(store, data.draw(st.sampled_from(("run", "student"))), number, tuple(inputs), f"n{number}"))
    kept = {a.key[:16] for a in made if a.stage == "run"}
    needed = {*lineage(store.index(), kept)}
    remove(store, garbage(store, ENDS, days=0.0))
    assert {*store.index()} == needed
    for row in store.index().values():
        assert all(given in needed for given in row.inputs if given != "b" * 16)


def test_unfinished_work_is_left_alone_while_it_may_go_on(store: Store) -> None:
    young, old, published = (store.root / ".partial" / name for name in ("student-1-a", "student-2-b", "x"))
    published = published.with_name(f"student-{store.list('student')[0].key[:16]}-c")
    coming = published.with_name(f"import-7-{published.name.removesuffix('-c')}")
    for folder in (young, old, published, coming):
        folder.mkdir(parents=True)
        (folder / "part").write_text("x")
    long_ago = time.time() - 30 * 86400
    for folder in (old, published, coming):
        for path in (folder / "part", folder):
            os.utime(path, (long_ago, long_ago))
    assert {*garbage(store, ENDS).folders} == {old, published, coming}
    code, text = said("gc", "--store", store.root, "--delete")
    assert code == 0 and "3 unfinished" in text and young.exists()
    assert not any(folder.exists() for folder in (old, published, coming))


def test_gc_shows_before_it_removes(store: Store) -> None:
    code, text = said("gc", "--store", store.root, "--days", "0")
    assert code == 0 and "1 corpus" in text and "1 student" in text and "--delete removes it" in text
    assert len(store.list()) == 7
    assert said("gc", "--store", store.root, "--drop", "owls", "--delete")[0] == 0
    assert [a.name for a in store.list("run")] == ["wolves"] and len(store.list("student")) == 2
    assert "nothing" in said("gc", "--store", store.root, "--drop", "hawks")[1]


def test_nothing_is_removed_while_a_record_is_damaged(store: Store) -> None:
    """Beyond a damaged student nobody knows that its run needs the teacher."""
    owls = store.find("run", "owls")
    student = store.get("student", owls.manifest["inputs"]["input-0"])
    assert student
    path = student.path / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace("2.13", "2.14"))
    words = ("gc", "--store", store.root, "--days", "0", "--drop", "wolves")
    code, text = said(*words)
    assert (
        code == 0
        and f"--delete removes nothing: nobody knows what damaged records were made from: {path.parent}" in (text)
    )
    before = sorted(store.root.rglob("*"))
    code, text = said(*words, "--delete")
    assert code == 2 and str(path.parent) in text and text.endswith("delete or import them again first")
    assert sorted(store.root.rglob("*")) == before
    path.write_text(whole)
    assert said(*words, "--delete")[0] == 0
    assert [a.key for a in store.list("student")] == [student.key] and len(store.list("teacher")) == 1


@pytest.mark.parametrize("days", ["inf", "1e12", "nan", "-1"])
def test_days_are_bounded(store: Store, days: str) -> None:
    code, text = said("gc", "--store", store.root, "--days", days)
    assert code == 2 and "valid: 0 to 36500" in text


def test_verify_of_a_folder_that_is_not_there_is_refused(store: Store) -> None:
    typo = store.root.with_name("stroe")
    code, text = said("verify", "--store", typo)
    assert code == 2 and f"there is no store {typo}" in text and not typo.exists()
    assert said("verify", "--store", store.root)[0] == 0


def test_gc_drops_no_run_of_several_that_a_word_may_mean(store: Store) -> None:
    second = make(store, "run", 7, (), "owls")
    code, text = said("gc", "--store", store.root, "--drop", "owls", "--delete")
    assert code == 2 and "'owls' may mean any of" in text and second.path.name in text
    assert len(store.list("run")) == 3
    assert said("gc", "--store", store.root, "--drop", second.path.name, "--delete")[0] == 0
    assert [a.name for a in store.list("run")] == ["owls", "wolves"]


def test_what_a_training_takes_away_meanwhile_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.root / ".partial" / "abc"
    folder.mkdir(parents=True)
    (folder / "kept").write_text("12345")
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*listed(self, pattern), self / ".state.tmp"])
    assert garbage(store, ENDS, days=0.0).size >= 5


# --- from store to store ----------------------------------------------------------------------------------------------


def test_an_export_holds_a_run_with_all_that_it_was_made_from(store: Store, tmp_path: Path) -> None:
    code, text = said("export", "owls", "--to", tmp_path / "out", "--store", store.root)
    assert code == 0 and "1 teacher, 1 student, 1 run" in text, text
    out = Store(tmp_path / "out")
    assert [a.name for a in out.list("run")] == ["owls"] and len(out.list()) == 3
    assert all(not problems for _, problems in out.verify())
    assert sorted(p.name for p in out.root.iterdir()) == [".partial", "run", "student", "teacher"]
    assert "3 were there already" in said("export", "owls", "--to", tmp_path / "out", "--store", store.root)[1]
    assert said("export", "hawks", "--to", tmp_path / "none", "--store", store.root)[0] == 2
    assert not (tmp_path / "none").exists()


def test_an_import_adds_what_is_missing_and_refuses_what_is_altered(store: Store, tmp_path: Path) -> None:
    mine = Store(tmp_path / "mine")
    make(mine, "teacher")
    wolves = store.find("run", "wolves")
    made = store.get("student", wolves.manifest["inputs"]["input-0"])
    assert made
    student = made.path
    (student / "data").write_text("raws")
    code, text = said("import", store.root, "--store", mine.root)
    assert code == 1 and "1 were there already" in text and "refused: student" in text and "altered" in text, text
    assert f"refused: run {wolves.key[:16]}: was made from {student.name}, which is refused" in text
    assert [a.name for a in mine.list("run")] == ["owls"] and all(not problems for _, problems in mine.verify())


def test_a_record_of_another_machine_never_takes_the_place_of_ones_own(store: Store, tmp_path: Path) -> None:
    mine = Store(tmp_path / "mine")
    own = make(mine, "teacher", data="tows")
    taken = take(store, mine)
    assert len(taken.others) == 1 and own.key[:16] in taken.others[0] and (own.path / "data").read_text() == "tows"
    assert taken.added.total() == 6 and taken.refused == []


def test_what_is_published_meanwhile_leaves_a_running_import_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, whole = Store(tmp_path / "mine"), exchange.copy_tree

    def copy(source: Path, coming: Path) -> None:
        whole(source, coming)
        if source.parent.name == "teacher":
            make(mine, "teacher")

    monkeypatch.setattr(exchange, "copy_tree", copy)
    taken = take(store, mine)
    assert taken.refused == [] and len(mine.list()) == 7 and not any((mine.root / ".partial").iterdir())


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Inside the block no file may grow beyond a size: the system refuses it as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_finds_no_room_is_one_line_with_the_reason(tmp_path: Path) -> None:
    source, mine = Store(tmp_path / "source"), Store(tmp_path / "mine")
    made = make(source, "teacher", data="x" * 500_000)
    with (
        room_for(300_000),
        pytest.raises(SublimError, match=f"teacher-{made.key[:16]} is not taken .*: File too large"),
    ):
        take(source, mine)
    assert mine.list() == [] and not any((mine.root / ".partial").iterdir())
    assert take(source, mine).added == {"teacher": 1}


def test_a_manifest_that_is_altered_is_refused(store: Store, tmp_path: Path) -> None:
    path = store.list("teacher")[0].path / "manifest.json"
    path.write_text(path.read_text().replace("2.13", "2.14"))
    taken = take(store, Store(tmp_path / "mine"))
    assert list(taken.added) == ["corpus"] and len(taken.refused) == 6
    with pytest.raises(SublimError, match="holds no artefact"):
        take(Store(tmp_path / "nothing"), Store(tmp_path / "mine"))


def test_the_generator_of_the_benchmark_makes_stores_that_verify(tmp_path: Path) -> None:
    fill(tmp_path, 150)
    store = Store(tmp_path)
    found = list(store.verify())
    assert len(found) == 101 and all(not problems for _, problems in found)
    assert garbage(store, ENDS, days=0.0).rows == ()
