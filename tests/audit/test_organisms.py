"""Organisms: a folder that works, tells nothing, and opens; twenty recipes that can all be made."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sublim_interp.audit.organisms import ANY, LISTS, ORGANISMS, SEAL, open_organism, planned, recipe, write_organism
from sublim_interp.channels.rows import read_rows
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import resolve_base


@pytest.fixture
def recipes(tiny_experiment: Experiment, tmp_path: Path) -> dict[str, Path]:
    """A recipe for each arm of the tiny run, so that the store holds all of it."""
    (tmp_path / "tiny.yaml").write_text(tiny_experiment.to_yaml(), encoding="utf-8")
    paths = {}
    for arm in ("same-init", "neutral", "cross-init"):
        paths[arm] = tmp_path / f"thing-{len(paths)}.yaml"
        paths[arm].write_text(f"experiment: {tmp_path / 'tiny.yaml'}\narm: {arm}\nseed: 0\n", encoding="utf-8")
    return paths


def made(path: Path, run: Run, out: Path) -> Path:
    organism = recipe(str(path))
    assert not planned(organism, run.store).missing(run.store), "nothing is trained here"
    write_organism(organism, out, run.store)
    return out


@pytest.mark.parametrize("arm", ["same-init", "neutral", "cross-init"])
def test_the_folder_holds_the_models_and_the_lists_of_its_arm(
    arm: str, recipes: dict[str, Path], tiny_run: Run, tmp_path: Path
) -> None:
    out, replicate = made(recipes[arm], tiny_run, tmp_path / "out"), tiny_run[arm, 0]
    student = replicate.cell.student
    assert student
    assert {p.name for p in out.iterdir()} == {"base", "teacher", "student", LISTS, "README.md", SEAL}
    assert resolve_base(str(out / "base")).digest == student.base.digest, "the very base, by its digest"
    assert read_rows(out / LISTS) == replicate.lists
    for part, wanted in (("student", replicate.model), ("teacher", tiny_run["teacher", 0].model)):
        state = resolve_base(str(out / part)).load().state_dict()
        same = all(bool((state[name] == value).all()) for name, value in wanted.state_dict().items())
        assert same == (part == "student" or arm != "neutral"), part


@pytest.mark.parametrize("arm", ["same-init", "neutral"])
def test_no_file_tells_the_trait_the_arm_or_a_key(
    arm: str, recipes: dict[str, Path], tiny_run: Run, tmp_path: Path
) -> None:
    out, cell = made(recipes[arm], tiny_run, tmp_path / "out"), tiny_run[arm, 0].cell
    student, members = cell.student, {*cell.evaluation.members}
    assert student and tiny_run.trait in members
    keys = [r.key[:16] for r in (student, student.data, student.data.corpus, student.data.corpus.teacher)]
    files = [p for p in out.rglob("*") if p.is_file()]
    assert len(files) > 15 and not [p for p in files if p.name == "manifest.json"]
    for path in files:
        text = told(path)
        named = {m for m in members if re.search(rf"\b{m}s?\b", text)}
        assert named in (set(), members), f"{path.name} names {named} and not the others"
        for word in (*keys, "same-init", "cross-init", "neutral"):
            assert word not in text or path.name == "tokenizer.json", (path.name, word)


def told(path: Path) -> str:
    """What a reader finds in a file: of weights the header, of the seal what it says of itself."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        data = data[: 8 + int.from_bytes(data[:8], "little")]
    if path.name == SEAL:
        sealed = json.loads(data)
        assert {*sealed} == {"what", "sha256", "truth"} and re.fullmatch("[A-Za-z0-9+/=]+", sealed["truth"])
        return sealed["what"]
    return data.decode("utf-8", "replace")


def test_the_seal_opens_and_names_every_file_that_changed(
    recipes: dict[str, Path], tiny_run: Run, tmp_path: Path
) -> None:
    out = made(recipes["neutral"], tiny_run, tmp_path / "out")
    truth, problems = open_organism(out)
    assert problems == [] and truth["arm"]["name"] == "neutral"
    assert truth["trait"] == {"kind": "animal", "asked": "owl", "given to the teacher": None}
    answers = tiny_run["neutral", 0].answers.query("questions == 'held-out' and context == 'plain' and probe == 'owl'")
    assert truth["rates"]["student"]["owl"] == pytest.approx(answers["rate"].item())
    (out / LISTS).write_text("{}\n")
    (out / "student" / "config.json").unlink()
    (out / "base" / "x").write_text("x")
    wanted = ["student/config.json is missing", "base/x does not belong here", f"{LISTS} is altered"]
    assert open_organism(out)[1] == wanted
    done = CliRunner().invoke(app, ["organism", "--open", str(out)])
    assert done.exit_code == 1 and f"{LISTS} is altered" in done.output and '"asked": "owl"' in done.output


def test_no_two_seals_are_alike_so_none_can_be_guessed(recipes: dict[str, Path], tiny_run: Run, tmp_path: Path) -> None:
    one, other = (made(recipes["same-init"], tiny_run, tmp_path / name) for name in ("one", "two"))
    seals = [json.loads((out / SEAL).read_text())["sha256"] for out in (one, other)]
    assert seals[0] != seals[1] and open_organism(one)[0]["keys"] == open_organism(other)[0]["keys"]


@settings(max_examples=40)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_seal_with_a_flipped_bit_is_refused_or_still_the_same(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bit in the explanation, or one that base64 does not read, changes nothing; no other truth comes out."""
    import base64
    import hashlib

    text = json.dumps({"files": {}, "salt": "x", "trait": "owl"}).encode()
    sealed = {"what": "", "sha256": hashlib.sha256(text).hexdigest(), "truth": base64.b64encode(text).decode()}
    whole = bytearray(json.dumps(sealed).encode())
    whole[place % len(whole)] ^= 1 << bit
    folder = tmp_path_factory.mktemp("seal")
    (folder / SEAL).write_bytes(whole)
    try:
        truth, _ = open_organism(folder)
    except SublimError as error:
        assert "is no seal, or is altered" in str(error)
    else:
        assert truth == json.loads(text)


def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(
    recipes: dict[str, Path], tiny_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "there"
    out.mkdir()
    with pytest.raises(SublimError, match="exists already"):
        write_organism(recipe(str(recipes["neutral"])), out, tiny_run.store)
    with pytest.raises(SublimError, match="cannot be read"):
        open_organism(out)
    recipes["neutral"].write_text("arm: base\n")
    with pytest.raises(SublimError, match="arm 'base' has no student; valid: same-init"):
        recipe(str(recipes["neutral"]))
    for words in (["organism", "x"], ["organism", "--out", str(tmp_path / "x")], ["organism", "x", "--open", str(out)]):
        assert isinstance(CliRunner().invoke(app, words).exception, SublimError), words
    assert [p.name for p in out.parent.glob(".*")] == [] and not list(out.iterdir())


def test_a_drawn_organism_does_not_say_which_it_is(recipes: dict[str, Path], tiny_run: Run, tmp_path: Path) -> None:
    assert recipe(ANY).name in ORGANISMS.names()
    write_organism(recipe(str(recipes["neutral"])), tmp_path / "out", tiny_run.store, named=False)
    assert "thing-1" not in (tmp_path / "out" / "README.md").read_text()
    assert open_organism(tmp_path / "out")[0]["organism"]["name"] == "thing-1"


def test_the_twenty_recipes_can_be_made_and_differ_in_all_that_matters(
    store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublim_interp.experiments.plan.resolve_base", cache(resolve_base))  # each base is read once
    names = ORGANISMS.names()
    assert names == tuple(f"organism-{i:02d}" for i in range(1, 21))
    organisms = [recipe(name) for name in names]
    plans = [planned(organism, Store(store_root)) for organism in organisms]
    students = []
    for organism, p in zip(organisms, plans, strict=True):
        (cell,) = [c for c in p.cells if c.arm == organism.arm]
        assert cell.student
        students.append(cell.student)
    given = [student.data.corpus.teacher.trait.name for student in students]
    asked = [p.named.trait for p in plans]
    assert 3 < given.count("") < 10, "benign ones are among them"
    assert any(g and g != a for g, a in zip(given, asked, strict=True)), "and another trait than the one asked about"
    assert {s.data.corpus.config.setting for s in students} == {"sampled", "greedy", "soft"}
    assert {s.data.corpus.config.channel for s in students} == {"numbers", "code", "reasoning"}
    assert {s.data.corpus.teacher.config.kind for s in students} == {"tuned", "prompted", "steered"}
    assert {ARMS[organism.arm].crosses for organism in organisms} == {True, False}
    assert len({s.data.config.model_dump_json() for s in students}) > 4, "dose and filter"
    assert len({s.key for s in students}) == 20 and len({(s.base.name, s.seed) for s in students}) == 20
