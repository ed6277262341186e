"""Tests of the store: keys, interruption, exclusion, corruption, and what a user reads when the disk refuses."""

import errno
import fcntl
import hashlib
import inspect
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from sublim_interp.core.device import changes, fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import is_sealed, seal, write_atomic
from sublim_interp.core.keys import canonical_json, digest_directory, digest_file, stage_key
from sublim_interp.core.store import Artifact, Store

PRINT = {"torch": "2.13.0", "threads": 1}
CHUNKS = 3

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(st.text(max_size=5), plain, max_size=4)


def form(value: Any) -> object:
    """An independent normal form: equal exactly where two plain values are the same data (1, 1.0, True all differ)."""
    if isinstance(value, dict):
        return "dict", frozenset((name, form(item)) for name, item in value.items())
    if isinstance(value, list):
        return "list", tuple(form(item) for item in value)
    return type(value).__name__, repr(value)


def reordered(value: Any, shuffle: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        shuffle.shuffle(items)
        return {name: reordered(item, shuffle) for name, item in items}
    return [reordered(item, shuffle) for item in value] if isinstance(value, list) else value


def make(store: Store, number: int = 0, files: dict[str, bytes] | None = None, **notes: Any) -> Artifact:
    with store.make("teacher", 1, {"number": number}, {"base": "b" * 64}, PRINT) as work:
        if not work.done:
            for name, data in (files or {"weights.bin": b"abc", "sub/rows.jsonl": b"{}\n"}).items():
                (work.directory / name).parent.mkdir(exist_ok=True)
                write_atomic(work.directory / name, data)
            work.note(**notes)
    return work.artifact


def chunked(store: Store) -> tuple[Artifact, bool, int]:
    """A stage of three chained chunks with a checkpoint, which goes on where it was; returns how many it computed."""
    computed = 0
    with store.make("corpus", 1, {"chunks": CHUNKS}, {}, PRINT) as work:
        if not work.done:
            checkpoint = work.directory / ".checkpoint" / "state"
            checkpoint.parent.mkdir(exist_ok=True)
            state = checkpoint.read_text() if checkpoint.exists() else "0"
            for index in range(len(state) - 1, CHUNKS):
                write_atomic(work.directory / f"chunk-{index}", hashlib.sha256(state.encode()).digest())
                state += str(index)
                write_atomic(checkpoint, state)
                computed += 1
    return work.artifact, work.resumed, computed


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def partials(store: Store) -> list[Path]:
    return sorted((store.root / ".partial").glob("*"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "runs")


# Keys and digests


def test_key_is_the_sha256_of_the_documented_json() -> None:
    text = '{"config":{"a":[1,2.5,null],"b":"\\u00e9"},"inputs":{"base":"00ff"},"stage":"teacher","version":3}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert stage_key("teacher", 3, {"b": "é", "a": (1, 2.5, None)}, {"base": "00ff"}) == expected


@given(configs, st.randoms(use_true_random=False))
def test_order_of_names_does_not_change_a_key(config: dict[str, Any], shuffle: random.Random) -> None:
    assert stage_key("s", 1, reordered(config, shuffle), {}) == stage_key("s", 1, config, {})


@given(configs, configs)
def test_configurations_share_a_key_only_if_they_are_the_same_data(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (stage_key("s", 1, a, {}) == stage_key("s", 1, b, {})) == (form(a) == form(b))


@given(configs, st.data())
def test_any_changed_leaf_changes_the_key(config: dict[str, Any], data: st.DataObject) -> None:
    assume(config)
    name = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(plain.filter(lambda value: form(value) != form(config[name])))
    assert stage_key("s", 1, {**config, name: value}, {}) != stage_key("s", 1, config, {})


def test_stage_version_and_inputs_each_enter_the_key() -> None:
    variants = [
        stage_key("teacher", 1, {"x": "y"}, {}),
        stage_key("student", 1, {"x": "y"}, {}),
        stage_key("teacher", 2, {"x": "y"}, {}),
        stage_key("teacher", 1, {}, {"x": "y"}),
        stage_key("teacher", 1, {"x": "y"}, {"x": "y"}),
        stage_key("teacher", 1, {"x": "y"}, {"x": "z"}),
    ]
    assert len(set(variants)) == len(variants)


@given(plain)
def test_canonical_json_reads_back_as_the_same_data(value: Any) -> None:
    assert form(json.loads(canonical_json(value))) == form(value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(SublimError, match=r"config\.student\.rates\[1\] is "):
        stage_key("s", 1, {"student": {"rates": [0.1, bad]}}, {})


def test_a_key_that_json_would_confuse_with_a_string_is_refused() -> None:
    with pytest.raises(TypeError, match="key 1"):
        canonical_json({"seeds": {1: "a"}})


def test_directory_digest_follows_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    def directory(name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    plain_model = {"config.json": "{}", "sub/weights": "abc"}
    digest = digest_directory(directory("a", plain_model))
    assert digest == digest_directory(directory("b", dict(reversed(plain_model.items()))))
    noisy = directory("c", {**plain_model, ".git/HEAD": "x", ".DS_Store": "x", "README.md": "x"})
    assert digest == digest_directory(noisy, ignore=["*.md"])
    others = [
        digest_directory(noisy),
        digest_directory(directory("d", {"config.json": "{}", "sub/weights": "abd"})),
        digest_directory(directory("e", {"config.json": "{}", "weights": "abc"})),
        digest_directory(directory("f", {"config.json": "{}a", "sub/weights": "bc"})),
        digest_directory(directory("g", {"config.json": "{}"})),
    ]
    assert len({digest, *others}) == 6


def test_what_cannot_be_digested_is_named(tmp_path: Path) -> None:
    with pytest.raises(SublimError, match="absent"):
        digest_file(tmp_path / "absent")
    with pytest.raises(SublimError, match="nowhere"):
        digest_directory(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SublimError, match="holds no files"):
        digest_directory(tmp_path / "empty")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loop").symlink_to(tmp_path)
    with pytest.raises(SublimError, match="loop is not a regular file"):
        digest_directory(tmp_path / "model")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SublimError, match="not a regular file"):
        digest_file(tmp_path / "pipe")


# Making and finding


def test_an_artefact_is_made_once_and_its_manifest_says_how(store: Store) -> None:
    first = make(store, seeds=[1, 2], kept=0.7)
    with store.make("teacher", 1, {"number": 0}, {"base": "b" * 64}, {"torch": "other"}) as work:
        assert work.done
    assert work.artifact == first == store.get("teacher", first.key, check=True)
    manifest = json.loads((first.path / "manifest.json").read_text())
    assert manifest == first.manifest
    assert manifest["key"] == stage_key("teacher", 1, {"number": 0}, {"base": "b" * 64})
    assert manifest["notes"] == {"seeds": [1, 2], "kept": 0.7}
    assert manifest["fingerprint"] == PRINT
    assert manifest["files"] == {
        "sub/rows.jsonl": {"bytes": 3, "sha256": hashlib.sha256(b"{}\n").hexdigest()},
        "weights.bin": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
    }
    assert first.verify() == []
    assert partials(store) == []
    assert str(store.root) not in json.dumps(manifest)


def test_scratch_is_not_published_and_files_are_readable_as_the_umask_says(store: Store) -> None:
    with store.make("teacher", 1, {}, {}, PRINT) as work:
        (work.directory / ".checkpoint").mkdir()
        (work.directory / ".checkpoint" / "optimiser").write_text("x")
        (work.directory / "sub").mkdir()
        (work.directory / "sub" / ".left.tmp").write_text("x")
        os.close(os.open(work.directory / "sub" / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
    published = {path.relative_to(work.artifact.path).as_posix() for path in work.artifact.path.rglob("*")}
    assert published == {"manifest.json", "sub", "sub/weights"}
    usual = store.root / "usual"
    usual.write_text("")
    assert (work.artifact.path / "sub" / "weights").stat().st_mode == usual.stat().st_mode


def test_a_block_cannot_write_into_a_finished_artefact(store: Store) -> None:
    make(store)
    with store.make("teacher", 1, {"number": 0}, {"base": "b" * 64}, PRINT) as work:
        assert not work.directory.exists()


def test_an_artefact_is_not_there_before_the_block_ends(store: Store) -> None:
    with store.make("teacher", 1, {}, {}, PRINT) as work:
        write_atomic(work.directory / "weights", "x")
        assert store.get("teacher", work.key) is None
        assert store.list() == []
        with pytest.raises(RuntimeError, match="published when"):
            _ = work.artifact
    assert store.list() == [work.artifact]


def test_a_note_that_cannot_be_stored_is_refused_at_once(store: Store) -> None:
    with store.make("teacher", 1, {}, {}, PRINT) as work:
        with pytest.raises(SublimError, match=r"loss\[1\] is nan"):
            work.note(loss=[1.0, float("nan")])
        with pytest.raises(TypeError):
            work.note(where=Path("x"))
    assert work.artifact.manifest["notes"] == {}


def test_list_and_find_by_name_and_by_key(store: Store) -> None:
    owl, fox = make(store, 0, name="owl"), make(store, 1, name="fox")
    nameless = make(store, 2)
    assert set(store.list("teacher")) == {owl, fox, nameless}
    assert store.list("student") == []
    assert store.find("teacher", "owl") == owl
    assert store.find("teacher", fox.key[:10].upper()) == fox
    assert store.find("teacher", nameless.key) == nameless
    assert "owl" in repr(owl) and owl.key[:16] in repr(owl) and "2 files" in repr(owl)
    # A name that is also the beginning of another's key means the name.
    assert store.find("teacher", make(store, 3, name=owl.key[:1]).name).manifest["config"] == {"number": 3}
    for unknown in ("dog", ""):
        with pytest.raises(SublimError, match=f"{fox.key[:16]} fox"):
            store.find("teacher", unknown)
    twin = make(store, 4, name="owl")
    with pytest.raises(SublimError, match="any of these") as caught:
        store.find("teacher", "owl")
    assert twin.key[:16] in str(caught.value) and owl.key[:16] in str(caught.value)
    assert fox.key[:16] not in str(caught.value)
    with pytest.raises(SublimError, match="there is: none"):
        store.find("student", "owl")


def test_the_root_is_the_argument_else_the_environment_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUBLIM_STORE", raising=False)
    assert Store.open().root == tmp_path / "runs"
    monkeypatch.setenv("SUBLIM_STORE", str(tmp_path / "elsewhere"))
    assert Store.open().root == tmp_path / "elsewhere"
    assert Store.open("here").root == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.open("~/mine").root == tmp_path / "mine"
    assert Store.open().list() == []
    assert list(tmp_path.iterdir()) == []


# Interruption

KILLED = """
import hashlib, os, signal, sys
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Artifact, Store

left = int(sys.argv[2])

def counted(call):
    def wrapped(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    return wrapped

for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
"""


def test_a_stage_killed_at_any_change_of_the_disk_goes_on_to_the_same_files(tmp_path: Path) -> None:
    # The source travels, since a child that imports this module would spend its time on pytest and hypothesis.
    constants = f"PRINT, CHUNKS = {PRINT!r}, {CHUNKS}\n"
    code = KILLED + constants + inspect.getsource(chunked) + "chunked(Store.open(sys.argv[1]))\n"
    whole, resumed, computed = chunked(Store.open(tmp_path / "whole"))
    assert (resumed, computed) == (False, CHUNKS)
    kills, saved, published = 0, 0, 0
    while True:
        store = Store.open(tmp_path / str(kills))
        process = child(code, str(store.root), str(kills))
        errors = process.communicate(timeout=60)[1]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
        finished = store.list() != []
        again, resumed, computed = chunked(store)
        assert again.manifest["files"] == whole.manifest["files"]
        assert again.verify() == [] and partials(store) == []
        assert computed == 0 or not finished
        assert finished or again.manifest["resumed"] == resumed
        saved += CHUNKS - computed
        published += finished
    # Positive controls: the kills reached into the publication and beyond, and late ones kept finished chunks.
    assert kills > 20 and 0 < published < kills and saved > 5 * CHUNKS


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_exception_publishes_nothing_and_keeps_the_files(store: Store, interruption: type[BaseException]) -> None:
    for attempt in range(2):
        with pytest.raises(interruption), store.make("teacher", 1, {}, {}, PRINT) as work:
            assert work.resumed == (attempt == 1)
            write_atomic(work.directory / f"part-{attempt}", "x")
            raise interruption
        assert store.list() == []
    with store.make("teacher", 1, {}, {}, PRINT) as work:
        assert sorted(path.name for path in work.directory.glob("part*")) == ["part-0", "part-1"]
    assert work.artifact.manifest["resumed"]


@pytest.mark.parametrize("refusal", [SublimError("no tokenizer"), KeyboardInterrupt()])
def test_a_block_that_stops_before_it_writes_leaves_no_partial(store: Store, refusal: BaseException) -> None:
    with pytest.raises(type(refusal)) as caught, store.make("teacher", 1, {}, {}, PRINT):
        raise refusal
    assert caught.value is refusal
    assert partials(store) == []


def test_a_partial_of_another_fingerprint_is_said_and_never_mixed_in(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    other = {**PRINT, "torch": "2.14.0"}
    for print_, text in ((PRINT, "old"), (other, "new")):
        with pytest.raises(KeyboardInterrupt), store.make("teacher", 1, {}, {}, print_) as work:
            assert not work.resumed
            assert not list(work.directory.glob("[!.]*"))
            write_atomic(work.directory / text, text)
            raise KeyboardInterrupt
    assert [record.levelno for record in caplog.records if "afresh" in record.message] == [logging.WARNING]
    assert "torch 2.13.0 -> 2.14.0" in caplog.text and "threads" not in caplog.text
    with store.make("teacher", 1, {}, {}, PRINT) as work:
        assert work.resumed
        assert [path.name for path in work.directory.glob("[!.]*")] == ["old"]
    assert list(work.artifact.manifest["files"]) == ["old"]
    assert partials(store) == []


def test_a_partial_whose_fingerprint_cannot_be_read_is_one_of_another_machine(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for number, text in enumerate((b"\xff", b"{", b"[1]", b"")):
        with pytest.raises(KeyboardInterrupt), store.make("teacher", 1, {"n": number}, {}, {"torch": "0"}) as work:
            write_atomic(work.directory / "old", "x")
            raise KeyboardInterrupt
        (work.directory / ".fingerprint.json").write_bytes(text)
        with store.make("teacher", 1, {"n": number}, {}, PRINT) as work:
            assert not list(work.directory.glob("[!.]*"))
            write_atomic(work.directory / "new", "x")
    assert caplog.text.count("torch None -> 2.13.0") == 4 and partials(store) == []


def test_changes_name_what_is_different() -> None:
    assert changes(PRINT, PRINT) == ""
    assert changes({"torch": "2.12.0", "threads": 1}, PRINT) == "torch 2.12.0 -> 2.13.0"
    assert changes({}, PRINT) == "torch None -> 2.13.0, threads None -> 1"


# Seals


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_seal_holds_until_a_byte_changes(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    path = tmp_path / "rows.jsonl"
    write_atomic(path, content, sealed=True)
    assert is_sealed(path)
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    for other in (bytes(flipped), content[:place], content + b"\0"):
        path.write_bytes(other)
        assert not is_sealed(path)
    path.write_bytes(content)
    assert is_sealed(path)


def test_a_file_that_replaces_another_is_sealed_at_every_moment(tmp_path: Path) -> None:
    path, coming = tmp_path / ".state", tmp_path / ".coming"
    for text in ("first", "second", "third"):
        before = path.read_text() if path.exists() else None
        coming.write_text(text)
        seal(path, coming)
        assert before is None or is_sealed(path), "a process killed here finds the old one good"
        coming.replace(path)
        assert is_sealed(path)
    path.write_text("first")
    assert not is_sealed(path), "but nothing older"


@pytest.mark.parametrize("seal_text", [None, b"", b"\xff\xfe", b"0" * 64])
def test_a_file_without_a_good_seal_is_not_trusted(
    tmp_path: Path, seal_text: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows"
    assert not is_sealed(path) and caplog.text == "", "what is not there is no damage"
    write_atomic(path, "x", sealed=True)
    beside = tmp_path / ".rows.sha256"
    beside.unlink() if seal_text is None else beside.write_bytes(seal_text)
    assert not is_sealed(path) and str(path) in caplog.text


def test_unfinished_stages_are_listed_with_their_damage_and_seals_are_not_published(store: Store) -> None:
    assert list(store.unfinished()) == []
    with pytest.raises(KeyboardInterrupt), store.make("corpus", 1, {}, {}, PRINT) as work:
        (work.directory / "sub").mkdir()
        for name in ("a", "sub/b"):
            write_atomic(work.directory / name, "x", sealed=True)
        (work.directory / "sub" / "b").write_text("y")
        raise KeyboardInterrupt
    assert list(store.unfinished()) == [(work.directory, ["sub/b is altered"])]
    with store.make("corpus", 1, {}, {}, PRINT) as work:
        pass
    assert sorted(work.artifact.manifest["files"]) == ["a", "sub/b"]
    assert not list(work.artifact.path.rglob("*.sha256")) and list(store.unfinished()) == []


# Several processes

ONE_OF_MANY = """
import sys, time
from pathlib import Path
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Store

print("ready", flush=True)
sys.stdin.readline()
with Store.open(sys.argv[1]).make("teacher", 1, {}, {}, {"threads": 1}) as work:
    if not work.done:
        print("worked", flush=True)
        for part in range(10):
            write_atomic(work.directory / f"part-{part}", str(part))
            time.sleep(.03)
print(work.artifact.key, flush=True)
"""


def test_processes_on_one_key_do_the_work_once(store: Store) -> None:
    processes = [child(ONE_OF_MANY, str(store.root)) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:  # all are let go before the first is waited for
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    key = stage_key("teacher", 1, {}, {})
    assert sorted(outputs) == [[key], [key], ["worked", key]]
    assert [problems for _, problems in store.verify()] == [[]]


def test_other_keys_are_not_held_up_by_a_lock(store: Store) -> None:
    with store.make("teacher", 1, {"number": 99}, {}, PRINT):
        done = threading.Event()
        threading.Thread(target=lambda: (make(store), done.set()), daemon=True).start()
        assert done.wait(timeout=20)


def test_waiting_for_another_is_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with store.make("teacher", 1, {"number": 0}, {"base": "b" * 64}, PRINT):
        waiting = threading.Thread(target=make, args=(store,), daemon=True)
        waiting.start()
        limit = time.monotonic() + 20
        while "waiting" not in caplog.text and time.monotonic() < limit:
            time.sleep(0.01)
    waiting.join(timeout=20)
    assert "waiting" in caplog.text and not waiting.is_alive()


# Corruption


def damage(artifact: Artifact, kind: str) -> str:
    """Damage an artefact; return what the complaint must name."""
    weights = artifact.path / "weights.bin"
    match kind:
        case "flip":
            weights.write_bytes(b"abb")
        case "cut":
            weights.write_bytes(b"ab")
        case "missing":
            weights.unlink()
        case "extra":
            (artifact.path / "sub" / "adapter.json").write_text("{}")
            return "sub/adapter.json"
        case "pipe":
            weights.unlink()
            os.mkfifo(weights)
        case "no manifest":
            (artifact.path / "manifest.json").unlink()
            return "manifest.json"
        case "half a manifest":
            text = (artifact.path / "manifest.json").read_bytes()
            (artifact.path / "manifest.json").write_bytes(text[: len(text) // 2])
            return "manifest.json"
        case "another's manifest":
            (artifact.path / "manifest.json").write_bytes(
                (make(Store(artifact.path.parent.parent), 7).path / "manifest.json").read_bytes()
            )
            return "manifest.json"
    return "weights.bin"


KINDS = ["flip", "cut", "missing", "extra", "pipe", "no manifest", "half a manifest", "another's manifest"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_by_verify_and_never_built_on(store: Store, kind: str) -> None:
    sound, damaged = make(store, 1), make(store, 2)
    named = damage(damaged, kind)
    problems = {artifact.path: problems for artifact, problems in store.verify()}
    assert problems.pop(sound.path) == []
    assert len(problems[damaged.path]) == 1 and problems[damaged.path][0].startswith(named)
    assert all(isinstance(repr(artifact), str) for artifact, _ in store.verify())
    for build in (lambda: store.get("teacher", damaged.key, check=True), lambda: make(store, 2)):
        with pytest.raises(SublimError) as caught:
            build()
        assert str(damaged.path) in str(caught.value) and named in str(caught.value)
        assert "Delete that directory" in str(caught.value) and "\n" not in str(caught.value)
    for path in sorted(damaged.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    damaged.path.rmdir()
    assert make(store, 2).verify() == []


def test_a_flip_of_any_byte_of_any_file_is_found(store: Store) -> None:
    artifact = make(store, name="owl", kept=0.7)
    shuffle = random.Random(0)
    for path in (path for path in artifact.path.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for position in range(len(data)):
            flipped = bytearray(data)
            flipped[position] ^= 1 << shuffle.randrange(8)
            path.write_bytes(flipped)
            assert [problem.split()[0] for problem in artifact.verify()] == [path.relative_to(artifact.path).as_posix()]
        path.write_bytes(data)
    assert artifact.verify() == []


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=40) | plain.map(lambda value: json.dumps(value).encode()))
def test_any_other_text_as_manifest_is_a_named_problem(store: Store, text: bytes) -> None:
    artifact = make(store)
    before = (artifact.path / "manifest.json").read_bytes()
    try:
        (artifact.path / "manifest.json").write_bytes(text)
        assert len(artifact.verify()) == 1
    finally:
        (artifact.path / "manifest.json").write_bytes(before)


def test_a_damaged_artefact_does_not_hide_the_others_from_list(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    sound, damaged = make(store, 1), make(store, 2)
    damage(damaged, "no manifest")
    assert store.list() == [sound]
    assert str(damaged.path) in caplog.text


def test_the_finder_s_dotfiles_and_a_user_s_own_folders_are_no_damage(store: Store) -> None:
    artifact = make(store)
    (artifact.path / ".DS_Store").write_text("x")
    (store.root / "figures" / "mine").mkdir(parents=True)
    (store.root / "notes.txt").write_text("x")
    assert list(store.verify()) == [(artifact, [])]


# A disk that refuses


def refusal(store: Store, **arguments: Any) -> str:
    with pytest.raises(SublimError) as caught:
        make(store, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_root_that_is_a_file_or_lies_under_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "runs" / "deep"):
        with pytest.raises(SublimError, match="--store"):
            Store.open(root)
        assert "--store" in refusal(Store(root))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_store_is_one_line_and_can_still_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kept = make(store)

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    for call in ("mkdir", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, call, refuse)
    assert make(store) == kept
    assert store.list() == [kept] and kept.verify() == []
    before = sorted(store.root.rglob("*"))
    message = refusal(Store(store.root / "new"))
    assert os.strerror(number) in message and "--store" in message and str(store.root / "new") in message
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "Permission denied" in refusal(Store.open(tmp_path / "runs"))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert "no file locks" in refusal(store)
    assert store.list() == [] and partials(store) == []


def test_without_locks_each_works_alone_and_the_first_to_end_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("SUBLIM_LOCKS", "none")
    monkeypatch.setenv("SUBLIM_OWNER", "job-1")
    with store.make("teacher", 1, {"number": 0}, {"base": "b" * 64}, PRINT) as slow:
        write_atomic(slow.directory / "weights.bin", b"slow")
        monkeypatch.setenv("SUBLIM_OWNER", "job-2")
        fast = make(store)
        assert slow.directory.is_dir(), "who still works is left alone"
        assert not slow.resumed and fast.verify() == []
    assert slow.artifact == fast and slow.artifact.verify() == []
    assert (fast.path / "weights.bin").read_bytes() == b"abc" and partials(store) == []
    assert make(store) == fast


def test_without_locks_a_job_goes_on_from_its_own_part_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBLIM_LOCKS", "none")
    resumed = {}
    for owner in ("job-1", "job-2", "job-1"):
        monkeypatch.setenv("SUBLIM_OWNER", owner)
        with pytest.raises(KeyboardInterrupt), store.make("corpus", 1, {}, {}, PRINT) as work:
            write_atomic(work.directory / "part", owner)
            resumed[owner] = work.resumed
            raise KeyboardInterrupt
    assert resumed == {"job-1": True, "job-2": False}


def test_a_store_that_is_copied_while_it_is_written_holds_whole_artefacts(store: Store, tmp_path: Path) -> None:
    """As rsync does: what was published is whole in the copy, and what was not is made there."""
    kept = make(store)
    with store.make("corpus", 1, {}, {}, PRINT) as work:
        write_atomic(work.directory / "part", "half")
        copied = Path(
            shutil.copytree(store.root, tmp_path / "copied", ignore=shutil.ignore_patterns(".partial", ".locks"))
        )
        write_atomic(work.directory / "rest", "whole")
    copy = Store(copied)
    assert [a.key for a in copy.list()] == [kept.key] and all(not problems for _, problems in copy.verify())
    assert not copy.holds(work.key) and store.holds(work.key)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_under_the_stage_is_one_line_and_keeps_what_is_there(store: Store) -> None:
    with (
        pytest.raises(SublimError, match=r"No space left.*free some space") as caught,
        store.make("teacher", 1, {}, {}, PRINT) as work,
    ):
        write_atomic(work.directory / "part", "x")
        (work.directory / ".big").symlink_to("/dev/full")
        (work.directory / ".big").write_bytes(b"x")
    assert str(store.root) in str(caught.value)
    assert (work.directory / "part").exists() and store.list() == []


def test_a_full_disk_met_inside_a_rust_library_is_the_same_line(store: Store) -> None:
    message = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(SublimError, match="free some space"), store.make("teacher", 1, {}, {}, PRINT):
        raise SafetensorError(message)


def test_a_stage_s_own_errors_are_not_explained_away(store: Store) -> None:
    own = FileNotFoundError(errno.ENOENT, "No such file", "base.json")
    with pytest.raises(FileNotFoundError) as caught, store.make("teacher", 1, {}, {}, PRINT):
        raise own
    assert caught.value is own


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_full_disk_at_any_step_of_publishing_leaves_old_or_new(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original = getattr(os, call)
    allowed, left = 0, 0

    def limited(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(os, call, limited)
    while not store.list() or allowed == 0:
        left = allowed
        try:
            make(store)
        except SublimError as error:
            assert "No space left" in str(error) and "\n" not in str(error)
        assert all(artifact.verify() == [] for artifact in store.list())
        assert list(store.root.rglob("*.tmp")) == []
        allowed += 1
    assert allowed > 1


def test_write_atomic_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "table.csv", "old")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(SublimError, match=r"table\.csv is not written: No space left"):
            write_atomic(tmp_path / "table.csv", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"table.csv": "old"}
    write_atomic(tmp_path / "table.csv", b"new")
    assert (tmp_path / "table.csv").read_bytes() == b"new"


# Fingerprint


def test_fingerprint_is_stable_and_tells_apart_what_may_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    here = fingerprint()
    assert here == fingerprint("cpu", "float32") and json.loads(canonical_json(here)) == here
    assert here["torch"] == torch.__version__ and here["cpu"]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert fingerprint() != here
    finally:
        torch.set_num_threads(threads)
    assert fingerprint(dtype="bfloat16") != here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    assert fingerprint("cuda:0")["device"] == f"cuda, card of cuda:0, CUDA {torch.version.cuda}"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "less")
    assert fingerprint()["capability"] == "less"


def test_importing_the_store_does_not_import_torch() -> None:
    process = child(
        "import sys, sublim_interp.core.store; print(sorted({'torch', 'filelock', 'numpy'} & set(sys.modules)))"
    )
    assert process.communicate(timeout=60)[0].strip() == "[]"


def test_a_store_may_be_named_by_a_text(tmp_path: Path) -> None:
    assert Store(str(tmp_path)) == Store(tmp_path) == Store.open(tmp_path) and Store(str(tmp_path)).list() == []
