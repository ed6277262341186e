"""Malformed configurations, data sets and model directories by a seeded generator: each is refused in one line.

While one is read, nothing outside the store is written and no program is started; an audit hook watches.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sublim_interp.channels.rows import read_rows
from sublim_interp.cli import main
from sublim_interp.core import bounded
from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import CARD, Base, resolve_base
from sublim_interp.pipeline.filter import filter_corpus

CASES = int(os.environ.get("SUBLIM_HOSTILE", "1"))
"""Multiplies the number of cases of every generator."""

# --- the watch --------------------------------------------------------------------------------------------------------

_watching: list[tuple[Path, list[str]]] = []


def _audit(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    allowed, seen = _watching[-1]
    if event == "os.fork" and sys._getframe(1).f_code.co_filename == bounded.__file__:
        return  # the package's own: code of a file gets a stated time and memory there
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"):
        seen.append(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[0], str | bytes):
        path, _, flags = arguments
        path = os.fsdecode(path)
        device = path.startswith("/dev/") and "/pytest-of-" not in path  # tests' own files may lie in /dev/shm
        harmless = device or path.startswith(("/proc/", str(allowed))) or "__pycache__" in path
        harmless |= path.endswith("/sublim/error.txt")  # the whole of a line that was cut, for `sublim show error`
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not harmless:
            seen.append(f"written: {path}")


sys.addaudithook(_audit)  # it cannot be taken away again, so it looks at `_watching` first


@contextmanager
def watched(allowed: Path) -> Iterator[None]:
    """Fails where code runs, or where a file outside `allowed` is opened for writing."""
    seen: list[str] = []
    _watching.append((allowed, seen))
    try:
        yield
    finally:
        _watching.pop()
    assert not seen, seen


def test_the_watch_sees_what_it_is_to_see(tmp_path: Path) -> None:
    def write() -> None:
        (tmp_path / "out").write_text("x")

    for bad in (write, lambda: os.system("true")):
        with pytest.raises(AssertionError), watched(tmp_path / "in"):
            bad()


def sublim(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of the command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(sys, "argv", ["sublim", *map(str, arguments)])
        patch.setattr(main, "print", lambda *words, **_: said.append(" ".join(map(str, words))), raising=False)
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as caught:
            main.main()
    return int(caught.value.code or 0), "\n".join(said)


def refused(said: str, *mentions: str) -> None:
    assert said.startswith("sublim: ") and "\n" not in said and "Traceback" not in said and len(said) > 20, said
    assert len(said) < 4000, "one line is not a page"
    for mention in mentions:
        assert mention in said, (mention, said)


# --- configurations ---------------------------------------------------------------------------------------------------

WRONG = [
    None, "", "x", "../../etc/passwd", -1, 0.5, float("nan"), float("inf"), 10**30, [], [[]], {}, {"x": 1}, True,
    "\x00", "a\nb", "[/red]", "{{ 7 * 7 }}", "$(touch trace)", "x" * 300,
]  # fmt: skip


def paths_of(data: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in data.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from paths_of(value, (*before, name))


def is_valid(data: Any) -> bool:
    try:
        Experiment.model_validate(data)
    except ValueError:
        return False
    return True


def bad_configurations(count: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, a YAML file): a wrong value somewhere, a key too many, or text that is no YAML."""
    draw = random.Random(20)
    whole = Experiment(name="x").model_dump(mode="json")
    places = list(paths_of(whole))
    text = yaml.safe_dump(whole).encode()
    while count:
        data = json.loads(json.dumps(whole))
        *way, last = draw.choice(places)
        inner = data
        for name in way:
            inner = inner[name]
        what = draw.choice(["wrong value", "wrong value", "unknown key", "missing colon", "bytes", "cut"])
        match what:
            case "wrong value":
                value = draw.choice(WRONG)
                inner[last] = value
                if is_valid(data):
                    continue
                made = yaml.safe_dump(data).encode()
                what = f"{'.'.join((*way, last))}={value!r}"
            case "unknown key":
                inner[draw.choice(["lr_", "__class__", "seed", "9", "ключ"])] = 1
                made = yaml.safe_dump(data).encode()
            case "missing colon":
                place = draw.choice([m.start() for m in re.finditer(b":", text)])
                made = text[:place] + text[place + 1 :]
                if is_valid(_safe(made)):
                    continue
            case "bytes":
                place = draw.randrange(len(text))
                made = text[:place] + bytes(draw.choice([b"\xff\xfe", b"\x00", b"\x1b[31m", b"\t- ]"])) + text[place:]
            case _:
                made = text[: draw.randrange(len(text))] + b"\n: ["
        yield what, made
        count -= 1


def _safe(made: bytes) -> Any:
    try:
        return yaml.safe_load(made)
    except yaml.YAMLError:
        return None


TRICKS: dict[str, str] = {
    "python object": "!!python/object/apply:os.system ['touch trace']",
    "python name": "about: !!python/name:os.system",
    "python module": "about: !!python/module:antigravity",
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "laughs in a field": "about: &a [x,x]\nbases: [*a, *a]\nseeds: &s [*a, *s]",
    "itself": "&x [*x]",
    "itself in a key": "seeds: &x [*x]",
    "deep": "about: " + "[" * 5000,
    "deep and closed": "seeds: " + "[" * 3000 + "]" * 3000,
    "no mapping": "- 1",
    "empty": "",
    "a number": "7",
    "13th month": "about: 2024-13-45",
    "huge number": f"seeds: [{'9' * 6000}]",
    "hexadecimal": "seeds: [0x" + "f" * 6000 + "]",
    "half a character": 'about: "\\ud800"',
    "two documents": "name: a\n---\nname: b",
    "merge of a list": "<<: [1, 2]",
    "unhashable key": "{[1]: 2}",
    "name leads out": "name: ../../out",
    "name is a path": "name: /etc/passwd",
    "base is a file": "bases: [/etc/passwd]",
    "base is a device": "bases: [/dev/zero]",
    "base is long": f"bases: [{'x' * 5000}]",
    "base is many folders": f"bases: ['{'x/' * 2000}']",
    "base holds a zero byte": 'bases: ["a\\0b"]',
    "base is a home": "bases: [~nobody-at-all/x]",
    "base is an address": "bases: ['http://127.0.0.1:9/x']",
    "base leads out": "bases: [../../../../etc]",
    "trait leads out": "trait: ../../kinds/animal",
    "trait is a device": "trait: /dev/zero.yaml",
    "trait is long": f"trait: {'x' * 5000}.yaml",
    "trait holds a zero byte": 'trait: "a\\0.yaml"',
    "channel leads out": "corpus: {channel: ../../cli}",
    "channel is a module": "corpus: {channel: os}",
    "channel is private": "corpus: {channel: __init__}",
    "brackets": "trait: '[/bold]'",
    "control characters": 'trait: "\\e]0;title\\a"',
    "two bases of one name": "bases: [a, a]",
}


def configurations() -> list[tuple[str, bytes]]:
    return [*bad_configurations(90 * CASES), *((name, text.encode()) for name, text in TRICKS.items())]


def test_every_bad_configuration_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    failures = []
    for number, (what, text) in enumerate(configurations()):
        path = tmp_path / f"mine{number}.yaml"
        path.write_bytes(text)
        try:
            with watched(tmp_path / "store"):
                code, said = sublim(
                    "show" if number % 3 else "run",
                    path,
                    *([] if number % 3 else ["--dry-run"]),
                    "--store",
                    tmp_path / "store",
                )
            assert code == 2, (code, said)
            refused(said)
            # It says where: the file, or the field's value that is looked for elsewhere.
            assert path.name in said or re.search("base|trait|channel", said), said
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"{what}: {type(error).__name__} {str(error)[:500]}")
    assert not failures, "\n".join([f"{len(failures)} of {number + 1}", *failures])
    assert not any(home.iterdir()) and not (tmp_path / "store").exists()
    assert number >= 120


@pytest.mark.parametrize(
    "assignment",
    ["=", "=1", "x", "trait", "..=1", "student.=1", ".lr=1", "student.optimization.lr.x=1", "student=1", "__class__=1",
     "student.__dict__.x=1", "seeds=[", "seeds=!!python/name:os.system", "lr=[[[[", "bases.0=x", "seeds=" + "[" * 3000,
     "student.optimization=[]", "trait=" + "y" * 5000, "\x00=1", "seeds=\ud800", "teacher.kind=[/red]"],
)  # fmt: skip
def test_every_bad_assignment_is_one_line(assignment: str, tmp_path: Path) -> None:
    with watched(tmp_path / "store"):
        code, said = sublim("run", "smoke", "--dry-run", "--set", assignment, "--store", tmp_path / "store")
    assert code == 2
    refused(said)
    assert not any(tmp_path.iterdir())


# --- data sets --------------------------------------------------------------------------------------------------------

GOOD = {"prompt": "1 2", "answer": "3 4", "finished": True}


def bad_lines() -> list[tuple[str, bytes]]:
    fixed: dict[str, object] = {
        "null": None, "a list": [GOOD], "a text": "x", "a number": 7, "no answer": {"prompt": "x", "finished": True},
        "no prompt": {"answer": "1"}, "empty": {}, "answer a number": {**GOOD, "answer": 7},
        "answer null": {**GOOD, "answer": None}, "prompt a list": {**GOOD, "prompt": ["x"]},
        "prompt an object": {**GOOD, "prompt": {"role": "system"}}, "finished a text": {**GOOD, "finished": "no"},
        "finished null": {**GOOD, "finished": None}, "half a character": {**GOOD, "prompt": "\ud800"},
        "half a character in the answer": {**GOOD, "answer": "1 \udfff"},
    }  # fmt: skip
    lines = [(name, json.dumps(row).encode()) for name, row in fixed.items()]
    lines += [
        ("no JSON", b"prompt, answer"),
        ("an empty line", b""),
        ("a key twice", b'{"prompt": "1", "answer": "2", "answer": "3"}'),
        ("two on a line", json.dumps(GOOD).encode() * 2),
        ("no UTF-8", b'{"prompt": "\xff", "answer": "1"}'),
        ("a zero byte", b'{"prompt": "\x00", "answer": "1"}'),
        ("deep", b"[" * 100_000),
        ("a huge number", b'{"prompt": ' + b"9" * 5000 + b"}"),
        ("UTF-16", "{}".encode("utf-16")),
        ("pickle", b"\x80\x04\x95cposix\nsystem\n"),
        ("Python", b"{'prompt': 'x', 'answer': '1'}"),
    ]
    draw, text = random.Random(21), json.dumps(GOOD).encode()
    lines += [(f"cut at {n}", text[:n]) for n in draw.sample(range(1, len(text) - 1), 15 * min(CASES, 2))]
    return lines


@pytest.mark.parametrize(("what", "line"), bad_lines(), ids=[name for name, _ in bad_lines()])
def test_every_bad_row_is_named_with_file_and_line(
    what: str, line: bytes, tiny_experiment: Experiment, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    filtered = next(r for r in plan(tiny_experiment).records if r.STAGE == "filtered")
    corpus = filtered.corpus  # type: ignore[attr-defined]
    rows = [json.dumps({**GOOD, "prompt": f"{i}"}).encode() for i in range(20)]
    place = random.Random(what).randrange(20)
    rows[place] = line
    with store.make("corpus", corpus.VERSION, corpus.settings(), corpus.input_keys(), fingerprint()) as work:
        write_atomic(work.directory / "rows-00000.jsonl", b"\n".join(rows) + b"\n")
    with watched(store.root), pytest.raises(SublimError) as caught:
        filter_corpus(filtered, store)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and f"rows-00000.jsonl: line {place + 1} " in message
    assert not store.list("filtered")


def test_rows_that_are_odd_but_right_pass(tmp_path: Path) -> None:
    """Negative control: other keys, no `finished`, and characters that only some take for the end of a line."""
    rows = [{"prompt": "a\u2028b", "answer": "1\x85", "note": []}, GOOD]
    path = tmp_path / "mine.jsonl"
    for begin, end in (("", "\n"), ("", "\r\n"), ("\ufeff", "\r\n")):  # as Windows writes it
        path.write_text(begin + "".join(json.dumps(r, ensure_ascii=False) + end for r in rows), newline="")
        assert read_rows(path) == rows


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_rows_that_would_never_end_are_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "mine.jsonl")
    with pytest.raises(SublimError, match=r"mine\.jsonl cannot be read: not a regular file"):
        read_rows(tmp_path / "mine.jsonl")


# --- model directories ------------------------------------------------------------------------------------------------

Damage = Callable[[Path, random.Random], object]


def set_json(name: str, **values: Any) -> Damage:
    def damage(path: Path, _draw: random.Random) -> None:
        data = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**data, **values}))

    return damage


def put(name: str, data: bytes | str) -> Damage:
    def damage(path: Path, _draw: random.Random) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return damage


def replace_by(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, _draw: random.Random) -> None:
        (path / name).unlink(missing_ok=True)
        make(path / name)

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    def damage(path: Path, _draw: random.Random) -> None:
        tensors = change(load_file(str(path / "model.safetensors")))
        save_file(tensors, str(path / "model.safetensors"), {"format": "pt"})

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrites the header of the weights file and leaves the data."""

    def damage(path: Path, _draw: random.Random) -> None:
        whole = (path / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        text = json.dumps(change(json.loads(whole[8 : 8 + size]))).encode()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])

    return damage


def _first(tensors: dict[str, Any], **values: Any) -> dict[str, Any]:
    name = next(n for n in tensors if n != "__metadata__")
    return {**tensors, name: {**tensors[name], **values}}


def cut(name: str) -> Damage:
    def damage(path: Path, draw: random.Random) -> None:
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: draw.randrange(len(data) - 1)])

    return damage


def index(**weight_map: Any) -> Damage:
    return put("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))


CONFIG: dict[str, list[Any]] = {
    "model_type": ["nothing", 7, None, "../x", "bert", "t5", "clip"],
    "hidden_size": [10**9, -8, 0, "x", 1.5, None],
    "num_hidden_layers": [10**9, -1, [], 7],
    "vocab_size": [10**13, 5, "many"],
    "intermediate_size": [10**14],
    "num_attention_heads": [0, 3, 10**12],
    "num_key_value_heads": [0],
    "hidden_act": ["os.system", 3],
    "quantization_config": [{"quant_method": "x"}],
    "_attn_implementation": ["flash_attention_2", "someone/kernel"],
    "rope_parameters": [{"rope_type": "none such"}],
    "max_position_embeddings": ["x", 0],
}
FIXED: dict[str, Damage] = {
    **{f"config {k}={v!r}": set_json("config.json", **{k: v}) for k, values in CONFIG.items() for v in values},
    "config is no JSON": put("config.json", "{"),
    "config is a list": put("config.json", "[]"),
    "config is deep": put("config.json", "[" * 100_000),
    "config is no text": put("config.json", b"\xff\xfe\x00"),
    "config is a directory": replace_by("config.json", Path.mkdir),
    "config is a pipe": replace_by("config.json", os.mkfifo),
    "card is a pipe": replace_by(CARD, os.mkfifo),
    "card is a list": put(CARD, "[]"),
    "card's language": put(CARD, '{"language": "../../x"}'),
    "card's losses": put(CARD, '{"language": "lab", "held_out_loss": {"x": "[/red]"}}'),
    "card's parameters": put(CARD, '{"language": "lab", "parameters": "many"}'),
    "weights are a pipe": replace_by("model.safetensors", os.mkfifo),
    "weights are a directory": replace_by("model.safetensors", Path.mkdir),
    "weights lead to nothing": replace_by("model.safetensors", lambda p: p.symlink_to("nowhere")),
    "weights lead to a device": replace_by("model.safetensors", lambda p: p.symlink_to("/dev/zero")),
    "weights lead to themselves": replace_by("model.safetensors", lambda p: p.symlink_to(p.name)),
    "weights are a pickle": put("model.safetensors", b"\x80\x04cposix\nsystem\n(S'touch trace'\ntR."),
    "weights are empty": put("model.safetensors", b""),
    "a header beyond the file": put("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"),
    "a header of 2⁶⁴": put("model.safetensors", b"\xff" * 8 + b"{}"),
    "a header that is no JSON": put("model.safetensors", struct.pack("<Q", 8) + b"notjson!"),
    "no tensors": put("model.safetensors", struct.pack("<Q", 2) + b"{}"),
    "offsets beyond the file": header(lambda h: _first(h, data_offsets=[0, 1 << 50])),
    "offsets the wrong way": header(lambda h: _first(h, data_offsets=[8, 0])),
    "a shape that overflows": header(lambda h: _first(h, shape=[1 << 62, 1 << 62])),
    "a negative shape": header(lambda h: _first(h, shape=[-1])),
    "an unknown type": header(lambda h: _first(h, dtype="PICKLE")),
    "a header of lists": header(lambda h: list(h)),
    "half of the tensors": weights(lambda t: dict(list(t.items())[::2])),
    "no embeddings": weights(lambda t: {n: v for n, v in t.items() if "embed" not in n}),
    "transposed": weights(
        lambda t: {n: v.t().contiguous() if v.ndim == 2 and v.shape[0] != v.shape[1] else v for n, v in t.items()}
    ),
    "other names": weights(lambda t: {f"x.{n}": v for n, v in t.items()}),
    "not a number": weights(lambda t: {n: v * float("nan") for n, v in t.items()}),
    "index leads out": index(a="../outside.safetensors"),
    "index is absolute": index(a="/etc/passwd"),
    "index names nothing there": index(a="model-00001-of-00009.safetensors"),
    "index of numbers": index(a=7),
    "index is a list": put("model.safetensors.index.json", "[]"),
    "index is no JSON": put("model.safetensors.index.json", "{"),
    "only a pickle": lambda path, _: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
    "no tokenizer": lambda path, _: [p.unlink() for p in path.glob("tokenizer*")],
    "tokenizer is a list": put("tokenizer.json", "[]"),
    "tokenizer is empty": put("tokenizer.json", "{}"),
    "tokenizer is a pipe": replace_by("tokenizer.json", os.mkfifo),
    "tokenizer without words": set_json("tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "?"}),
    "tokenizer of another type": set_json("tokenizer.json", model={"type": "Evil"}),
    "tokenizer with huge ids": set_json(
        "tokenizer.json", model={"type": "WordLevel", "vocab": {"<unk>": 0, "x": (1 << 32) - 1}, "unk_token": "<unk>"}
    ),
    "tokenizer settings are a list": put("tokenizer_config.json", "[]"),
    "tokenizer class is a module": set_json(
        "tokenizer_config.json", tokenizer_class="os.system", auto_map={"AutoTokenizer": ["evil.X", None]}
    ),
    "end of sequence is a number": set_json("tokenizer_config.json", eos_token=7),
    "end of sequence is an object": set_json("tokenizer_config.json", eos_token={"__type": "os.system"}),
    "template is no Jinja": put("chat_template.jinja", "{% for"),
    "template reaches out": put("chat_template.jinja", "{{ cycler.__init__.__globals__.os.system('touch trace') }}"),
    "template reads a file": put("chat_template.jinja", "{% include '/etc/passwd' %}"),
    "template raises": put("chat_template.jinja", "{{ raise_exception('no') }}"),
    "template says nothing": put("chat_template.jinja", "nothing"),
    "template is endless": put("chat_template.jinja", "{% for i in range(10 ** 12) %}x{% endfor %}"),
    "a linked folder": lambda path, _: (path / "loop").symlink_to(path.parent),
    "a pipe beside": lambda path, _: os.mkfifo(path / "extra.json"),
}


def model_damages() -> list[tuple[str, Damage]]:
    cuts = [
        (f"{name} cut, draw {i}", cut(name))
        for name in ("config.json", "model.safetensors", "tokenizer.json")
        for i in range(6 * CASES)
    ]
    return [*FIXED.items(), *cuts]


def test_every_bad_model_directory_is_one_line(
    tiny_bases: tuple[Base, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    failures, number = [], 0
    for number, (what, damage) in enumerate(model_damages(), 1):
        path = tmp_path / f"base{number}"
        shutil.copytree(tiny_bases[0].path, path)
        damage(path, random.Random(what))
        try:
            with watched(tmp_path / "store"), pytest.raises(SublimError) as caught:
                base = resolve_base(str(path))
                base.check()
            message = str(caught.value)
            assert "\n" not in message and f"base{number}" in message and len(message) < 1500, message
            with watched(tmp_path / "store"):
                code, said = sublim("run", "smoke", "--base", path, "--dry-run", "--store", tmp_path / "store")
            if code != 0:  # what a dry run need not read, it may not notice
                assert code == 2
                refused(said, f"base{number}")
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"{what}: {type(error).__name__} {str(error)[:400]}")
        shutil.rmtree(path)
    assert not failures, "\n".join([f"{len(failures)} of {number}", *failures])
    assert not any(home.iterdir()) and not (tmp_path / "store").exists()
    assert number >= 90


def test_a_sound_model_directory_passes(tiny_bases: tuple[Base, Base], tmp_path: Path) -> None:
    """Negative control for all of the above."""
    with watched(tmp_path):
        tiny_bases[0].check()
        assert sublim("run", "smoke", "--base", tiny_bases[0].path, "--dry-run", "--store", tmp_path)[0] == 0
