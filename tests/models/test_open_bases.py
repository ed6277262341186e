"""Tests of the catalogue of open models: each configuration with random weights, names, families, the audit of step 0.

The weights are random, the layers cut to two or one, the vocabulary too; widths, heads, norms and positions are as
published.
"""

import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from typer.testing import CliRunner

from command import sublim
from sublim_interp.cli.bases import leads
from sublim_interp.cli.main import app
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import changed
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.models.architectures import architecture_of, final_norm, has_middle, output_map
from sublim_interp.models.base import base_names, resolve_base
from sublim_interp.models.check import check_logits
from sublim_interp.models.initialisation import audit, compare_starts, start_in_words
from sublim_interp.models.loading import save_model, sizes
from sublim_interp.models.open_bases import OPEN_BASES, OpenBase, find_open_base, open_names, prepared_from
from sublim_interp.traits.favourites import KINDS
from tiny_models import tiny

NAMES = OPEN_BASES.names()
PLENTY = 9e8
"""Parameters from which one layer is enough of a test."""


def configuration(entry: OpenBase, **changes: int) -> PreTrainedConfig:
    given = {**entry.config, **changes}
    return AutoConfig.for_model(given.pop("model_type"), **given)


@pytest.mark.parametrize("name", NAMES)
def test_the_published_configuration_has_the_published_number_of_parameters(name: str) -> None:
    entry = OPEN_BASES.load(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(entry))
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert sizes(model.config, (p.shape for p in model.parameters())) == entry.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_its_configuration_is_causal_and_keeps_a_cache(name: str, tmp_path: Path) -> None:
    entry = OPEN_BASES.load(name)
    depth = "n_layer" if "n_layer" in entry.config else "num_hidden_layers"
    layers = 1 if entry.parameters > PLENTY else 2
    torch.manual_seed(0)
    small = configuration(entry, **{depth: layers, "vocab_size": 300}, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
    check_logits(model, list(range(3, 20)), 0, 1e-3, tmp_path)
    row = architecture_of(model)
    assert row is not None and output_map(model, 0) is not None and final_norm(model) is not None
    assert has_middle(model) == (entry.config["model_type"] != "gpt_neox")


def test_the_first_line_of_every_file_says_what_it_is() -> None:
    for path in [*OPEN_BASES.paths.values(), *KINDS.paths.values()]:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ") and first.endswith(".") and 30 < len(first) <= 120, path


def test_every_name_is_told_once_and_none_is_a_lab_base() -> None:
    named = [m for n in NAMES for m in (OPEN_BASES.load(n).members or [n])]
    assert len(named) == len(set(named)) == len(open_names())
    assert not set(named) & set(base_names()) and not {n for n in NAMES if OPEN_BASES.load(n).members} & set(named)
    wanted = {"smollm2-135m", "smollm2-360m", "smollm2-1.7b", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-0.6b",
              "llama-3.2-1b", "gemma-3-270m", "gemma-3-1b", "olmo-2-1b", "pythia-160m-seed9",
              "pythia-160m-weight-seed3", "alias-gpt2-small", "datadecide-c4-60m-aux-3"}  # fmt: skip
    assert wanted <= set(named)
    for size in ("14m", "31m", "70m", "160m", "410m"):
        members = OPEN_BASES.load(f"polypythia-{size}").members
        starts = {m.initialisation for name, m in members.items() if "data" not in name}
        assert len(starts) == sum("data" not in name for name in members), "every seed has weights of its own"


@pytest.mark.parametrize("name", [n for n in NAMES if OPEN_BASES.load(n).recipe])
def test_a_recipe_is_one_that_an_experiment_takes(name: str) -> None:
    entry = OPEN_BASES.load(name)
    exp = changed(experiment("owl"), entry.recipe)
    assert exp.student.part == "lora" and entry.recipe_source


@pytest.mark.parametrize("name", [n for n in NAMES if OPEN_BASES.load(n).experiment])
def test_an_experiment_with_a_recipe_for_a_model_starts_from_it_or_from_what_is_made_of_it(name: str) -> None:
    made = {found.name for found in prepared_from(name)}
    assert {*experiment(OPEN_BASES.load(name).experiment).bases} <= {name, *made}


def test_a_size_that_a_file_leaves_out_counts_as_nothing() -> None:
    entry = OpenBase(name="x", about="x", licence="MIT", hub="a/b", parameters=7, config={"model_type": "llama"})
    assert entry.shape == {"d_model": 0, "layers": 0, "vocabulary": 0, "parameters": 7, "body": 7}


def test_a_family_is_no_base_and_its_members_are_named() -> None:
    with pytest.raises(SublimError, match="is a family; choose one of its models: pythia-14m, pythia-14m-seed1"):
        resolve_base("polypythia-14m")
    found = find_open_base("datadecide-c4-60m-aux-2")
    assert found and (found.hub, found.revision) == ("allenai/DataDecide-c4-60M", "step6250-seed-small-aux-2")
    assert find_open_base("no-such-model") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hub": ""}, "give hub for a model, members for a family"),
        ({"licence": None}, "licence"),
        ({"parameters": 0}, "parameters"),
        ({"size": "big"}, "unknown key 'size'"),
        ({"wheel": {"package": "-r evil"}}, "wheel.package"),
    ],
)
def test_a_file_that_describes_no_model_is_one_line(change: dict, words: str, tmp_path: Path) -> None:
    entry = {"about": "x", "licence": "MIT", "hub": "a/b", "parameters": 1, "config": {"model_type": "llama"}, **change}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entry))
    with pytest.raises(SublimError) as caught:
        resolve_base(str(tmp_path / "own.yaml"))
    assert words in str(caught.value) and "own.yaml" in str(caught.value) and "\n" not in str(caught.value)


# --- step 0 -----------------------------------------------------------------------------------------------------------


def save(directory: Path, seed: int, noise: float = 0.0) -> Path:
    model = tiny("llama")
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_()
        torch.manual_seed(99)
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    save_model(model, directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve_base("lab-small-0").path / file, directory)
    return directory


def test_equal_related_and_other_starts_are_told_apart(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", 0), save(tmp_path / "two", 1)
    assert start_in_words(compare_starts(one, save(tmp_path / "again", 0))) == "same"
    assert start_in_words(compare_starts(one, two)) == "other"
    near: Any = compare_starts(one, save(tmp_path / "near", 0, noise=3.0))
    assert start_in_words(near) == "related" and 0.2 < near["correlation"].mean() < 0.5
    assert not near["tensor"].str.contains("norm").any() or near["size"].min() > 1
    with pytest.raises(SublimError, match="other names or shapes"):
        compare_starts(one, resolve_base("lab-small-0").path)


def test_forks_of_a_lab_base_share_their_start_and_other_seeds_do_not() -> None:
    start = resolve_base("lab-small-0-step000000").path
    assert start_in_words(compare_starts(start, start)) == "same"
    rows: Any = compare_starts(start, resolve_base("lab-small-0-step000125").path)
    assert start_in_words(rows) == "related" and rows["correlation"].max() > 0.5
    other: Any = compare_starts(start, resolve_base("lab-small-1").path)
    assert other["correlation"].abs().max() < rows["correlation"].max() / 2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub client's cache with the step 0 of three models of a family, of which the catalogue tells one wrongly."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return family(tmp_path, {"first": ("1", 0), "twin": ("1", 0), "liar": ("1", 1)})


def family(tmp_path: Path, members: dict[str, tuple[str, int]], noise: float = 0.0) -> Path:
    """A file that describes a family, whose step 0 is put into the cache.

    members: by name the initialisation that the file tells, and the seed that is used
    noise: what the last member's weights have besides
    """
    for name, (_, seed) in members.items():
        place = tmp_path / "hub" / f"models--nobody--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "step0").write_text("0" * 40)
        save(place / "snapshots" / ("0" * 40), seed, noise * (name == [*members][-1]))
    told = {n: {"hub": f"nobody/{n}", "initialisation": start, "order": n} for n, (start, _) in members.items()}
    entry = {"about": "Tiny.", "licence": "MIT", "parameters": 1, "config": {"model_type": "llama", "vocab_size": 53}}
    (tmp_path / "family.yaml").write_text(yaml.safe_dump({**entry, "members": told, "step0": "step0"}, sort_keys=False))
    return tmp_path / "family.yaml"


def test_the_audit_finds_a_member_that_is_not_what_the_catalogue_says(hub: Path) -> None:
    table = audit(str(hub)).set_index("member")
    assert table["found"].to_dict() == {"twin": "same", "liar": "other"}
    assert table["agrees"].to_dict() == {"twin": True, "liar": False}


@pytest.mark.parametrize(("noise", "found"), [(0.0, "same"), (3.0, "related")])
def test_the_audit_finds_two_later_members_that_secretly_share_a_start(
    noise: float, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    members = {"first": ("1", 0), "second": ("2", 1), "third": ("3", 2), "copy": ("4", 1)}
    file = family(tmp_path, members, noise)
    table: Any = audit(str(file)).set_index(["member", "against"])
    assert len(table) == (5 if found == "same" else 6) and table["said"].eq("other").all()
    (wrong,) = table.index[~table["agrees"]]
    assert wrong == ("copy", "second") and table.loc[wrong, "found"] == found
    shown = CliRunner().invoke(app, ["show", str(file), "--audit"]).output
    assert f"1 of {len(table)} pairs are not as the catalogue says" in " ".join(shown.split())
    lines = [line.split()[:4] for line in shown.splitlines() if " other " in line]
    assert [line[:2] for line in lines] == [[m, "first"] for m in ("second", "third", "copy")] + [["copy", "second"]]
    assert lines[-1] == ["copy", "second", "other", found]


def test_pairs_are_compared_as_numpy_does_it_in_pieces_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [save(tmp_path / str(i), i % 2, noise) for i, noise in enumerate((0.0, 0.0, 2.0))]
    whole = [{name: t.numpy() for name, t in load_file(place / "model.safetensors").items()} for place in places]
    monkeypatch.setattr("sublim_interp.models.initialisation._AT_ONCE", 100)
    for one, other in ((0, 1), (0, 2)):
        rows: Any = compare_starts(places[one], places[other])
        assert not rows["equal"].any() and rows["size"].max() > 800
        for row in rows.itertuples():
            pair = [whole[i][row.tensor].ravel().astype(float) for i in (one, other)]
            assert row.correlation == pytest.approx(np.corrcoef(pair)[0, 1], abs=1e-12)


def test_what_has_no_step_0_is_not_audited() -> None:
    for name in ("smollm2-135m", "stanford-gpt2-small"):
        with pytest.raises(SublimError, match="no step 0 is known"):
            audit(name)
    said = sublim("show", "polypythia-14m", "--audit")
    assert said.returncode == 2 and "EleutherAI/pythia-14m@step0" in said.stderr and "Traceback" not in said.stderr


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_models_families_and_all_bases() -> None:
    one, family, everything = sublim("show", "qwen2.5-7b"), sublim("show", "polypythia-160m"), sublim("list")
    assert [done.returncode for done in (one, family, everything)] == [0, 0, 0], one.stderr + family.stderr
    for words in ("7,615,616,512 parameters", "Apache-2.0", "not pinned", "computed", "arXiv 2507.14805",
                  "--set student.lora_rank=8", "hidden_size: 3584"):  # fmt: skip
        assert words in one.stdout, words
    for words in ("EleutherAI/pythia-160m-weight-seed3", "weight-3", "--audit"):
        assert words in family.stdout, words
    for words in ("lab-small-0", "smollm2-135m", "polypythia-160m, a family of 16", "Gemma Terms of Use"):
        assert words in everything.stdout, words


def test_the_command_leads_on_from_smollm2_to_its_experiment() -> None:
    for name, also in (("smollm2-135m", "smollm2-135m-prepared"), ("smollm2-135m-prepared", "made of smollm2-135m")):
        done = sublim("show", name)
        assert done.returncode == 0 and also in done.stdout, done.stderr
        assert done.stdout.splitlines()[-1].strip() == "sublim run owl-smollm2 --dry-run"


@pytest.mark.parametrize("name", [n for n in NAMES if OPEN_BASES.load(n).recipe])
def test_the_printed_command_of_a_recipe_makes_one_replicate_in_bfloat16(name: str) -> None:
    words = shlex.split(str(leads(OPEN_BASES.load(name))[-1]))
    assert words[:4] == ["sublim", "run", "owl", "--base"] and words[4] in open_names()
    sets = dict(word.split("=", 1) for before, word in pairwise(words) if before == "--set")
    exp = changed(experiment("owl"), {key: yaml.safe_load(value) for key, value in sets.items()})
    assert (exp.dtype, exp.seeds) == ("autocast", (0,))
    assert exp == changed(exp, OPEN_BASES.load(name).recipe) and exp.student.part == "lora"
