"""Tests of the doctor: a sound set-up is well, every kind of trouble is named with advice, no traceback is left."""

import builtins
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_card import FULL as FULL_CARDS
from fake_card import Told, tell_of
from sublim_interp.cli.examine import FULL, GIB, PROCESS, READ, WORD, Finding, examine, fits
from sublim_interp.cli.main import main
from sublim_interp.core.device import CHOICE, fingerprint
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.models.base import CARD, Base
from zoo.trials import Specimen


@pytest.fixture(scope="module")
def shelf(tiny_bases: tuple[Base, Base], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small base under the headline's names."""
    shelf = tmp_path_factory.mktemp("shelf")
    for name in experiment("owl").bases:
        shutil.copytree(tiny_bases[0].path, shelf / name)
    return shelf


@pytest.fixture(autouse=True)
def one_lab_base(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's shelf is this one, and there is memory."""
    monkeypatch.setattr("sublim_interp.models.base._package_bases", lambda: [shelf])
    monkeypatch.setattr("sublim_interp.cli.examine._free_memory", lambda: 16 * GIB)


def make(store: Store, number: int, print_: dict[str, Any] | None = None) -> Path:
    with store.make("teacher", 1, {"number": number}, {}, print_ or {**fingerprint(), "threads": 1}) as work:
        write_atomic(work.directory / "weights", "abc")
    return work.artifact.path


def troubles(found: list[Finding]) -> list[str]:
    return [f"{f.topic}: {f.text} | {f.advice}" for f in found if not f.well]


def doctor_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sublim", "doctor", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_a_sound_set_up_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "runs")
    make(store, 0)
    before = sorted(store.root.rglob("*"))
    assert doctor_command(monkeypatch, "--store", str(store.root)) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("all well", "torch", "transformers", "one thread", "GiB free", "--processes 2", "lab-small-0",
                  "sublim run demo", "20 or 14 bytes", "file locks hold", "1 artefacts"):  # fmt: skip
        assert words in said, words
    assert sorted(store.root.rglob("*")) == before


def test_a_store_that_is_not_made_yet_is_not_made(tmp_path: Path) -> None:
    found = examine(tmp_path / "a" / "runs")
    assert not troubles(found) and any("not made yet" in f.text for f in found)
    assert not list(tmp_path.iterdir())


def test_a_sick_store_is_named_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "runs")
    make(store, 0)
    make(store, 1, {**fingerprint(), "threads": 1, "cpu": "another"})
    (make(store, 2) / "weights").write_text("abd")
    with pytest.raises(KeyboardInterrupt), store.make("corpus", 1, {}, {}, fingerprint()) as work:
        write_atomic(work.directory / "rows-00000.jsonl", "{}", sealed=True)
        write_atomic(work.directory / "rows-00001.jsonl", "{}", sealed=True)
        (work.directory / "rows-00001.jsonl").write_text("{ }")
        raise KeyboardInterrupt
    assert doctor_command(monkeypatch, "--store", str(store.root)) == 1
    said = " ".join(capsys.readouterr().out.split())
    for words in ("weights is altered", "delete it", "another fingerprint", "1 unfinished stages", "rows-00001.jsonl"):
        assert words in said, words
    assert "rows-00000.jsonl is" not in said and "2 of" in said


def test_a_store_that_is_a_file_or_has_no_locks_or_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (trouble,) = troubles(examine(tmp_path / "file"))
    assert "file stands where a directory" in trouble
    store = Store(tmp_path / "runs")
    make(store, 0)
    with monkeypatch.context() as patch:
        import fcntl

        patch.setattr(fcntl, "flock", lambda *_: None)
        (trouble,) = troubles(examine(store.root))
        assert "locks do not keep" in trouble and "--store" in trouble
        patch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, os.strerror(37))))
        (trouble,) = troubles(examine(store.root))
        assert os.strerror(37) in trouble and "--store" in trouble
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
        (trouble,) = troubles(examine(store.root))
        assert "0.0 GiB free" in trouble and "free some space" in trouble


def test_packages_that_are_missing_or_old_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = ["torch<3,>=2.6", "scipy>=99", "no-such-package>=1", "pytest>=99; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: declared)
    old, missing = troubles(examine(tmp_path))
    assert "scipy is" in old and "pip install 'scipy>=99'" in old
    assert "no-such-package is missing" in missing and "pip install 'no-such-package>=1'" in missing


@pytest.mark.parametrize("broken", ["torch", "transformers", "psutil", "filelock", "packaging"])
def test_a_package_that_cannot_be_imported_is_a_finding(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Store(tmp_path), 0)
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == broken:
            raise ImportError(f"{broken}.so: undefined symbol\nsecond line")
        return real(name, *arguments, **options)

    monkeypatch.undo()  # the memory is measured here
    monkeypatch.setattr("sublim_interp.models.base._package_bases", lambda: [])
    monkeypatch.setattr(builtins, "__import__", refuse)
    found = troubles(examine(tmp_path))
    assert any("ImportError" in t and broken in t for t in found) and not any("second line" in t for t in found)


def test_missing_and_damaged_lab_bases_are_named(
    tiny_bases: tuple[Base, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(experiment("owl").bases) - {"lab-small-2"}:
        shutil.copytree(tiny_bases[0].path, tmp_path / "shelf" / name)
    weights = tmp_path / "shelf" / "lab-small-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr("sublim_interp.models.base._package_bases", lambda: [tmp_path / "shelf"])
    missing, damaged = troubles(examine(tmp_path / "runs"))
    assert "bases missing: lab-small-2 |" in missing and "pretrain" in missing
    assert "lab-small-1" in damaged and "are damaged" in damaged


def test_a_model_directory_is_tried_out_and_weighed(
    tiny_bases: tuple[Base, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, head = str(tiny_bases[1].path), WORD * len(tiny_bases[1].tokenizer)
    assert any("an answer ends with <eos>" in f.text for f in examine(bases=(path,)) if path in f.topic)
    assert any("no such directory" in t for t in troubles(examine(bases=("nowhere",))))
    monkeypatch.setattr(
        "sublim_interp.cli.examine._free_memory", lambda: PROCESS + head + 14 * tiny_bases[1].shape["parameters"]
    )
    (small,) = [t for t in troubles(examine(bases=(path,))) if path in t]
    assert "teacher.part=lora" in small
    monkeypatch.setattr("sublim_interp.cli.examine._free_memory", lambda: PROCESS + head)
    assert any("smaller model" in t for t in troubles(examine(bases=(path,))))


def test_each_gpu_is_told_with_what_fits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublim_interp.cli.examine._lab", lambda: iter(()))
    tell_of(monkeypatch, Told("Large", 21, 80), Told("Old", 1.5, 8, half=False))
    found = examine(tmp_path)
    large, old = [f.text for f in found if f.topic == "gpu"]
    assert large.startswith("cuda:0, Large: 21.0 of 80.0 GiB free, computes in bfloat16; --device cuda, or SUBLIM_DEV")
    assert old.startswith("cuda:1, Old: 1.5 of 8.0 GiB free, does not compute in bfloat16; --device cuda, or SUBLIM_D")
    fitting = [f.text for f in found if f.topic == "open models"]
    assert [line.partition("--")[0] for line in fitting] == ["on cuda:0, "] * 2 + ["on cuda:1, "] * 2 + [""] * 2
    assert "--processes 1: models up to 1.1 B parameters trained whole, 1.5 B with LoRA" in fitting[0]
    assert not troubles(found), "no model is put on the card that is nearly full"
    monkeypatch.setenv(CHOICE, "cuda:1")
    (full,) = [line for line in troubles(examine(tmp_path)) if line.startswith("gpu")]
    assert "1.5 of 8.0 GiB free" in full and "models are put there | end what else is on it" in full


def test_a_gpu_that_tells_no_memory_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(device: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr("sublim_interp.cli.examine._lab", lambda: iter(()))
    tell_of(monkeypatch, Told("Taken", 0, 80))
    monkeypatch.setattr("torch.cuda.mem_get_info", busy)
    assert not troubles(examine(tmp_path))
    monkeypatch.setenv(CHOICE, "cuda")
    (line,) = [line for line in troubles(examine(tmp_path)) if line.startswith("gpu")]
    assert "cuda:0, Taken, does not tell its memory" in line and "end the process that has it" in line


def test_a_model_is_weighed_against_the_gpu_that_it_would_be_put_on(
    tiny_bases: tuple[Base, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(_: Base) -> None:
        raise FULL_CARDS[0]

    path = str(tiny_bases[1].path)
    monkeypatch.setattr("sublim_interp.cli.examine._lab", lambda: iter(()))
    monkeypatch.setattr(Base, "check", check)
    monkeypatch.setenv(CHOICE, "cuda")
    tell_of(monkeypatch, Told("Small", 1, 2))
    weighed, loaded = [line for line in troubles(examine(tmp_path, (path,))) if path in line]
    assert "training all of it takes about 1.0 GiB, 1.0 are free on cuda | take a smaller model" in weighed
    assert "it does not fit the GPU (2.0 GiB, 1.0 free now) | take a smaller model, or SUBLIM_DEVICE=cpu" in loaded
    tell_of(monkeypatch, Told("Large", 80, 80))
    monkeypatch.setattr("sublim_interp.cli.examine._free_memory", lambda: PROCESS)
    assert not any("training all of it" in line for line in troubles(examine(tmp_path, (path,))))


@given(st.integers(0, 1 << 45), st.integers(1, 64))
def test_the_rule_of_what_fits_is_the_one_that_is_said(free: int, processes: int) -> None:
    for each in (FULL, READ):
        parameters = fits(free, processes, each)
        assert parameters == 0 or processes * (PROCESS + each * parameters) <= free
        assert processes * (PROCESS + each * (parameters + 1)) > free - processes


def test_a_base_that_cannot_be_asked_about_anything_is_named(lab_base: Base, tmp_path: Path) -> None:
    """A lab base without its card is taken for an English one."""
    whole, bare = lab_base.path, tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns(CARD))
    found = {path: [f for f in examine(bases=(str(path),)) if f.topic == f"base {path}"] for path in (whole, bare)}
    assert any(f.well and f.text == "favourites of these kinds: animal, color, food, tree" for f in found[whole])
    (odd,) = [f for f in found[bare] if not f.well]
    assert "no favourites: " in odd.text and "vocabulary lacks" in odd.text and CARD in odd.advice


def test_a_model_s_table_says_what_there_is_and_why_there_is_none(tmp_path: Path) -> None:
    said = {}
    for kind in ("llama", "deepseek_v4"):
        one = Specimen(kind, tmp_path / kind)
        found = examine(bases=(str(one.path),))
        said[kind] = [f.text for f in found if f.topic == f"base {one.path}"]
        assert all(f.well for f in found if f.topic == f"base {one.path}")
    asked = ("stream: capture, edit, record, directions, grids", "attention patterns", "heads", "logit lens", "bridge")
    for what in (*asked, "part=lora"):
        assert sum(line.startswith(f"{what}: ") for line in said["llama"]) == 1
        assert not any(line.startswith(f"{what}: none") for line in said["llama"])
    assert "attention patterns: of 2 layers" in said["llama"] and "heads: 2 in each of 2 layers" in said["llama"]
    none = [line for line in said["deepseek_v4"] if ": none: " in line]
    assert [line.partition(": none: ")[0] for line in none] == [*asked[:4]]
    assert "do not read and leave one residual stream" in none[0]


def test_what_is_wrong_with_bad_input_is_one_line(tmp_path: Path) -> None:
    for found in (examine(tmp_path / ("x" * 5000)), examine(bases=("\0", "x" * 5000, "a/b"))):
        assert troubles(found)
        assert not any("\n" in line for line in troubles(found))
