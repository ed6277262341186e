"""A fuzzer of what people hand in: YAML, rows, manifests, models, templates. Each is read, or refused in one line.

No input takes longer than seconds. Each test takes two seconds; $SUBLIM_FUZZ is another number, as in `make fuzz`.
Draws follow seeds 0, 1, 2, …, so that a failure comes again; hypothesis shows the smallest input that fails.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from sublim_interp.channels.filter import REASONS, refusal
from sublim_interp.channels.numbers import REASONS as OWN_REASONS
from sublim_interp.channels.numbers import Rule
from sublim_interp.channels.protocol import CHANNELS
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import canonical_json
from sublim_interp.core.settings import parse_assignment, parse_mapping, read_yaml
from sublim_interp.core.shelf import CATALOGUE
from sublim_interp.core.store import Store
from sublim_interp.core.yaml import dump_yaml, load_yaml
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import CARD, Base, resolve_base
from sublim_interp.sweeps.grid import GRIDS
from sublim_interp.training.recording.trace import Trace
from sublim_interp.traits.favourites import FAVOURITES, KINDS

SECONDS = float(os.environ.get("SUBLIM_FUZZ", "2"))
SLOW = 20.0
"""Seconds of processor time that no single input may take."""


def fuzz(inputs: st.SearchStrategy, try_one: Callable[[Any], bool]) -> None:
    """Tries inputs until the time is over, and prints how many, and how many of them were read."""
    end, tried, read = time.monotonic() + SECONDS, 0, 0

    def one(value: Any) -> None:
        nonlocal tried, read
        if tried > read > 0 and time.monotonic() > end:
            return  # the draws that are left of this seed
        start = time.process_time()
        try:
            read += bool(try_one(value))
        except SublimError as error:
            said = str(error)
            assert said and "\n" not in said and "Traceback" not in said, said
        tried += 1
        assert time.process_time() - start < SLOW

    quiet = settings(max_examples=50, deadline=None, database=None, suppress_health_check=tuple(HealthCheck))  # type: ignore[arg-type]
    for number in count():
        seed(number)(quiet(given(inputs)(one)))()
        if time.monotonic() > end:
            break
    print(f"\n{tried} inputs tried, {read} read")
    assert 0 < read < tried, "a fuzzer that is never read, or always, tries nothing"


PIECES = st.sampled_from(
    [
        *("a: ", "010", "1e-3", "yes", "~", "&a ", "*a", "<<: ", "!!", "!!str ", "%YAML 1.1", "---"),
        *("...", "[", "]", "{", "}"),
        *(", ", ": ", "- ", "? ", "\n", "\n  ", "\t", "'", '"', "#", ">", "|", "=", "@", "`"),
        *("\\x00", "\ufeff", "\x85", "\u2028"),
        *("é", "🦉", ".inf", ".nan", "-0", "0x", "1_0", "2024-01-02", "axes", "change", "student", "student.lora_rank"),
        *("9223372036854775807", "lion", "\r\n"),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """A text in which a few places are cut out, doubled, or replaced by pieces."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + draw(st.sampled_from([0, 1, 8, 80])))))
        piece = draw(PIECES | st.text(max_size=3) | st.just(text[start:end] * 2) | st.just(""))
        text = text[:start] + piece + text[end:]
    return text


def texts_of(*folders: str) -> list[str]:
    return [p.read_text(encoding="utf-8") for f in folders for p in sorted((CATALOGUE / f).glob("*.yaml"))]


def test_yaml_of_any_sort_is_data_or_one_line(tmp_path: Path) -> None:
    some = st.sampled_from(texts_of("grids", "experiments")) | st.lists(PIECES, max_size=30).map("".join)
    path = tmp_path / "mine.yaml"

    def try_one(text: str) -> bool:
        data = parse_mapping(text, path)
        assert dump_yaml(load_yaml(again := dump_yaml(data), "again")) == again
        return True

    fuzz(mutated(some), try_one)


@pytest.mark.parametrize("folder", ["experiments", "grids", "traits", "kinds"])
def test_settings_of_any_sort_are_taken_or_one_line(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    shelves = {"grids": GRIDS, "traits": FAVOURITES, "kinds": KINDS}

    def try_one(text: str) -> bool:
        path.write_bytes(text.encode())
        found: Any = read_yaml(Experiment, path) if folder == "experiments" else shelves[folder].load(str(path))
        canonical_json(found.model_dump(mode="json"))
        if folder == "grids":
            for _, _, exp in found.cells():
                canonical_json(exp.model_dump(mode="json"))
        return True

    fuzz(mutated(st.sampled_from(texts_of(folder))), try_one)


def test_assignments_of_any_sort_are_taken_or_one_line() -> None:
    fields = st.sampled_from(["seeds", "student.lora_rank", "student.optimization.lr", "trait", "student", "arms", ""])
    values = st.lists(PIECES, max_size=6).map("".join) | st.sampled_from(["1", "[1, 2]", "2e-4", "{part: lora}", "owl"])

    def try_one(text: str) -> bool:
        key, value = parse_assignment(text)
        canonical_json(Experiment().set({key: value}).model_dump(mode="json"))
        return True

    fuzz(st.tuples(fields, values).map("=".join) | values, try_one)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "answer", "x"]), inner),
    max_leaves=6,
)
TEXT = st.text() | st.lists(st.sampled_from([*"0129,;.()[] \n", "owl", "İ", "Ｏwl"]), max_size=12).map("".join)
ROW = st.fixed_dictionaries({"prompt": TEXT, "answer": TEXT}, optional={"finished": st.booleans(), "x": JSON})


@st.composite
def damaged(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which a few are other, missing or there twice."""
    found = draw(data)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(found)))
        end = draw(st.integers(start, min(len(found), start + draw(st.sampled_from([0, 1, 20])))))
        found = found[:start] + draw(st.binary(max_size=3) | st.just(found[start:end] * 2)) + found[end:]
    return found


def test_rows_of_any_sort_are_read_and_judged_or_one_line_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = st.tuples(ROW | JSON, st.booleans()).map(lambda both: json.dumps(both[0], ensure_ascii=both[1]))
    ends = st.sampled_from(["\n", "\r\n"])
    whole = st.tuples(st.lists(line, min_size=1, max_size=4), ends).map(lambda two: two[1].join([*two[0], ""]))

    def try_one(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            rows = read_rows(path)
        except SublimError as error:
            assert ": line " in str(error)
            raise
        reasons = {refusal(row, CHANNELS["numbers"], Rule(), ("owl", "lion")) for row in rows}
        assert reasons <= {None, "unfinished", *OWN_REASONS}, "no rule fails"
        assert "unjudged" in REASONS
        return True

    fuzz(damaged(whole.map(lambda text: text.encode(errors="surrogatepass"))), try_one)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of one artefact."""
    found = Store(tmp_path / "store")
    with found.make("corpus", 1, {"a": 1}, {}, {}) as work:
        (work.directory / "rows.jsonl").write_text("{}\n")
    yield found


def test_a_manifest_with_any_damage_is_told(store: Store) -> None:
    (artifact,) = store.list("corpus")
    path = artifact.path / "manifest.json"
    right = path.read_bytes()

    def try_one(data: bytes) -> bool:
        path.write_bytes(data)
        problems = artifact.verify()
        assert all(problem and "\n" not in problem for problem in problems)
        assert bool(problems) == (data != right), "what is damaged is told, and nothing else"
        for found in store.list("corpus"):
            repr(found)
        return not problems

    fuzz(damaged(st.just(right)) | damaged(JSON.map(lambda value: json.dumps(value).encode())), try_one)


def test_a_traces_manifest_with_any_damage_is_told(tiny_run: Any, tmp_path: Path) -> None:
    students = [artifact for artifact in tiny_run.store.list("student") if (artifact.path / "trace").is_dir()]
    lines = (students[0].path / "trace" / "trace.jsonl").read_bytes()
    path = tmp_path / "trace.jsonl"

    def try_one(data: bytes) -> bool:
        path.write_bytes(data)
        Trace.open(tmp_path)
        return True

    fuzz(damaged(st.just(lines)), try_one)


# --- model directories ------------------------------------------------------------------------------------------------

FIELDS = st.sampled_from(
    [
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("model_type", "architectures", "max_position_embeddings", "rope_parameters", "rope_theta", "rms_norm_eps"),
        *("tie_word_embeddings", "attention_bias", "torch_dtype", "hidden_act", "bos_token_id", "eos_token_id"),
        *("pad_token_id", "quantization_config", "auto_map", "initializer_range", "layer_types", "sliding_window"),
    ]
)
VALUES = st.one_of(
    st.sampled_from([0, -1, 1, 3, 7, 2**31, 2**62, 0.5, float("nan"), "", "llama", "gpt2", "bert", None, True, [], {}]),
    JSON,
)
TEMPLATES = st.sampled_from(
    [
        *(
            "{% for m in messages %}",
            "{% endfor %}",
            "{{ m.content }}",
            "{{ m['role'] }}",
            "{{ messages }}",
            "{% if x %}",
        ),
        *("{% endif %}", "<|user|> ", " <|assistant|>", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{", "}}", "{%"),
        *("{{ strftime_now('%Y') }}", "{{ messages | random }}", "{{ 'x' * 10 ** 9 }}", "{% set ns = namespace() %}"),
        *("{{ range(10 ** 9) | list }}", "{{ self.__class__ }}", "{% include 'x' %}", "\x00", "é", "{# "),
    ]
)


@pytest.fixture
def model_folder(tiny_bases: tuple[Base, ...], tmp_path: Path) -> Path:
    """A copy of a tiny base, without the card that says how it was made."""
    folder = Path(shutil.copytree(tiny_bases[0].path, tmp_path / "base"))
    (folder / CARD).write_text('{"language": "english"}')
    return folder


def opened(folder: Path) -> bool:
    """Loads and tries a base as every run does."""
    base = resolve_base(str(folder))
    base.check()
    base.prompt_ids([{"role": "system", "content": "!"}, {"role": "user", "content": "1, 2"}])
    return True


def test_a_model_s_configuration_of_any_sort_is_taken_or_one_line(model_folder: Path) -> None:
    right = json.loads((model_folder / "config.json").read_text())

    def try_one(changes: dict[str, Any]) -> bool:
        (model_folder / "config.json").write_text(json.dumps({**right, **changes}))
        return opened(model_folder)

    fuzz(st.dictionaries(FIELDS, VALUES, max_size=2), try_one)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_model_s_file_with_any_damage_is_taken_or_one_line(name: str, model_folder: Path) -> None:
    path = model_folder / name
    right = path.read_bytes()

    def try_one(data: bytes) -> bool:
        path.write_bytes(data)
        return opened(model_folder)

    # Most bytes of the weights are numbers, of which any is one: the header is what can be damaged.
    head, rest = (right[:2000], right[2000:]) if name == "model.safetensors" else (right, b"")
    fuzz(damaged(st.just(head)).map(lambda data: data + rest), try_one)


def test_a_chat_template_of_any_sort_writes_a_prompt_or_is_one_line(model_folder: Path) -> None:
    path = model_folder / "chat_template.jinja"
    right = path.read_text()

    def try_one(text: str) -> bool:
        path.write_text(text)
        return opened(model_folder)

    fuzz(mutated(st.just(right)) | st.lists(TEMPLATES, max_size=8).map("".join), try_one)
