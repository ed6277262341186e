"""Tests of experiments as configuration: YAML in and out, what is refused in which words, and that all is explained."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config, changed, parse_assignment, read_yaml, validate
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.settings import Optimization, Selection

ARMS = ("same-init", "neutral", "other-trait", "cross-init", "same-init-b", "cross-init-b", "cross-neutral", "base")
PARTS = ("full", "body", "lora")
SETTINGS = (
    "channels.settings", "core.settings", "experiments.schema", "lab.recipe", "pipeline.settings",
    "training.interventions", "training.settings",
)  # fmt: skip


def configs() -> list[type[Config]]:
    """Every sort of settings that an experiment or a base is made of, from the modules where settings live."""
    modules = [import_module(f"sublim_interp.{name}") for name in SETTINGS]
    found = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    return [kind for kind in dict.fromkeys(found) if issubclass(kind, Config)]


positive = st.floats(1e-30, 1e30)
fraction = st.floats(0, 1, exclude_max=True)
counts = st.integers(1, 10**6)


@st.composite
def optimizations(draw: st.DrawFn) -> Optimization:
    optimizer = draw(st.sampled_from(["adam", "adamw", "sgd"]))
    return Optimization(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=draw(positive),
        schedule=draw(st.sampled_from(["linear", "cosine", "constant"])),
        warmup=draw(st.integers(0, 10**6)),
        steps=draw(counts),
        batch=draw(counts),
        weight_decay=draw(st.floats(0, 10)) if optimizer == "adamw" else 0.0,
        beta1=draw(fraction),
        beta2=draw(fraction),
        clip=draw(st.none() | positive),
    )


@st.composite
def corpora(draw: st.DrawFn) -> CorpusConfig:
    setting = draw(st.sampled_from(["sampled", "greedy", "soft"]))
    temperature = 1.0 if setting == "greedy" else draw(positive)
    return CorpusConfig(
        setting=setting,  # type: ignore[arg-type]
        temperature=temperature,
        prompts=draw(counts),
        chunk=draw(counts),
    )


@st.composite
def filters(draw: st.DrawFn) -> FilterConfig:
    fewest = draw(st.integers(1, 20))
    return FilterConfig(
        min_numbers=fewest,
        max_numbers=draw(st.integers(fewest, 30)),
        max_value=draw(st.integers(0, 10**6)),
        banned=tuple(draw(st.lists(st.integers(0, 999), max_size=4))),
        duplicates=draw(st.booleans()),
        lists=draw(counts),
    )


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    printable = st.characters(exclude_categories=["C", "Z"], include_characters=" \n\t")
    names = st.text(printable, min_size=1, max_size=12)
    arms = tuple(draw(st.lists(st.sampled_from(ARMS), min_size=1, unique=True)))
    trait = draw(names)
    return Experiment(
        name=draw(st.from_regex(r"[a-z0-9][a-z0-9._-]*", fullmatch=True)),
        about=draw(st.text(printable, max_size=40)),
        trait=trait,
        other_trait=draw(names.filter(lambda other: other != trait)),
        bases=tuple(draw(st.lists(names, min_size=2, max_size=4, unique=True))),
        arms=arms,
        seeds=tuple(draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True))),
        teacher=TeacherConfig(
            kind=draw(st.sampled_from(["tuned", "prompted", "steered"])),
            part=draw(st.sampled_from(PARTS)),
            optimization=draw(optimizations()),
            strength=draw(positive),
        ),
        corpus=draw(corpora()),
        filter=draw(filters()),
        student=StudentConfig(part=draw(st.sampled_from(PARTS)), optimization=draw(optimizations())),
        evaluation=EvaluationConfig(
            questions=draw(st.permutations(["seen", "held-out", "indirect"]).map(tuple)),  # type: ignore[arg-type]
        ),
    )


def refused(call: Any, *arguments: Any) -> str:
    """The message of the SublimError that `call` raises; it is one line."""
    with pytest.raises(SublimError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# --- YAML -------------------------------------------------------------------------------------------------------------


@given(experiments())
@settings(max_examples=60)
def test_an_experiment_survives_yaml(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> None:
    path = tmp_path_factory.mktemp("yaml") / "experiment.yaml"
    path.write_text(experiment.to_yaml(), encoding="utf-8")
    again = read_yaml(Experiment, path)
    assert again == experiment
    assert again.to_yaml() == experiment.to_yaml()


def test_yaml_may_leave_out_what_it_does_not_change(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("trait: wolf\nother_trait: owl\nstudent:\n  optimization:\n    lr: 2e-4\n")
    experiment, usual = read_yaml(Experiment, path), Experiment()
    assert experiment.student.optimization == usual.student.optimization.model_copy(update={"lr": 2e-4})
    assert experiment.student.optimization.steps != Optimization().steps, "else this would hold whatever the code does"
    assert experiment.teacher == usual.teacher
    made = validate(Pretraining, {"optimization": {"steps": 7}}, "here").optimization
    assert made == Pretraining().optimization.model_copy(update={"steps": 7})


def test_a_frozen_experiment_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        Experiment().trait = "wolf"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trait: [owl", ("broken YAML", "line 1")),
        ("trait: owl\n  bases: x\n y", ("broken YAML", "line")),
        ("a: b: c", ("broken YAML",)),
        ("\t- x", ("broken YAML",)),
        ("trait: 2020-13-77", ("line 1", "timestamp is not read")),
        ('seeds: !!int ""', ("broken YAML",)),
        ("[" * 5000, ("broken YAML",)),
        ("seeds: [" + "9" * 5000 + "]", ("broken YAML",)),
        ("trait: !!python/object/apply:os.getcwd []", ("line 1", "os.getcwd is not read")),
        ("", ("key: value", "NoneType")),
        ("- owl", ("key: value", "list")),
        ("just text", ("key: value", "str")),
        ("triat: owl", ("'triat'", "did you mean 'trait'?", "sublim show owl")),
        ("student: {rate: 1}", ("'student.rate'", "part", "lora_rank", "optimization")),
        ("student: {optimization: {learning_rate: 1}}", ("'student.optimization.learning_rate'", "lr", "weight_decay")),
        ('"two\\nlines": 1', ("two", "valid keys")),
        ("1: 2", ("line 1", "a key that is no text")),
        ("student: {part: head}", ("student.part", "'full', 'body', 'lora' or 'opening'", "'head'")),
        ("corpus: {setting: beam}", ("corpus.setting", "'sampled', 'greedy' or 'soft'")),
        ("arms: [same-init, twice-init]", ("arms.1", "same-init, same-init-b", "cross-init-b", "'twice-init'")),
        ("arms: [teacher]", ("arms.0", "no such arm", "'teacher'")),
        ("evaluation: {contexts: []}", ("contexts", "contexts must hold plain")),
        ("evaluation: {questions: [hard]}", ("'seen', 'held-out' or 'indirect'",)),
        ("bases: lab-small-0", ("bases", "list", "lab-small-0")),
        ("seeds: 3", ("seeds", "list", "3")),
        ("seeds: []", ("seeds is empty",)),
        ("seeds: [1, 2, 1]", ("seeds", "twice")),
        ("bases: [a, a]", ("bases", "twice")),
        ("bases: [a]", ("cross-init", "two bases", "a")),
        ("trait: wolf", ("other_trait", "wolf")),
        ('{trait: "a\\nb", other_trait: "a\\nb"}', ("other_trait",)),
        ("name: My Experiment", ("name", "pattern")),
        ("student: {optimization: {lr: 0}}", ("student.optimization.lr", "greater than 0")),
        ("student: {optimization: {lr: .inf}}", ("student.optimization.lr", "finite")),
        ("student: {optimization: {lr: .nan}}", ("student.optimization.lr",)),
        ("student: {optimization: {steps: 1.5}}", ("student.optimization.steps", "integer")),
        ("student: {optimization: {weight_decay: 0.1}}", ("weight_decay", "adamw")),
        ("filter: {min_numbers: 5, max_numbers: 4}", ("min_numbers=5", "max_numbers=4")),
        ("corpus: {setting: greedy, temperature: 0.5}", ("temperature=0.5", "greedy")),
    ],
)
def test_bad_yaml_is_refused_in_one_line_that_names_the_choices(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(read_yaml, Experiment, path)
    assert message.startswith(str(path))
    for word in words:
        assert word in message, message


def test_an_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    assert "No such file" in refused(read_yaml, Experiment, tmp_path / "absent.yaml")
    assert str(tmp_path) in refused(read_yaml, Experiment, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00x")
    assert "UTF-8" in refused(read_yaml, Experiment, tmp_path / "binary.yaml")


@given(st.one_of(st.text(), st.text(alphabet="ab:-[]{}!&*|>'\"# \n\t,0123.")))
def test_whatever_a_file_holds_it_is_an_experiment_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert isinstance(read_yaml(Experiment, path), Experiment)
    except SublimError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("heads", [3, 5, 32])
def test_heads_that_do_not_cut_the_width_are_refused(heads: int) -> None:
    message = refused(validate, Pretraining, {"d_model": 32, "heads": heads}, "here")
    assert f"heads={heads}" in message and "d_model=32" in message


# --- set --------------------------------------------------------------------------------------------------------------


def test_set_changes_one_field_at_any_depth_and_leaves_the_original_alone() -> None:
    before = Experiment()
    after = before.set({"student.optimization.lr": 2e-4}, seeds=range(12))
    assert after.student.optimization.lr == 2e-4 and after.seeds == tuple(range(12))
    assert before == Experiment()
    assert after.set({"student.optimization.lr": before.student.optimization.lr}, seeds=[0]) == before
    assert Pretraining().set({"optimization.steps": 5}).optimization.lr == Pretraining().optimization.lr


@given(experiments(), experiments())
@settings(max_examples=30)
def test_set_of_every_field_makes_any_experiment_of_any_other(a: Experiment, b: Experiment) -> None:
    def leaves(record: Config, prefix: str = "") -> dict[str, Any]:
        out = {}
        for name in type(record).model_fields:
            value = getattr(record, name)
            out |= leaves(value, f"{prefix}{name}.") if isinstance(value, Config) else {prefix + name: value}
        return out

    assert a.set(leaves(b)) == b
    assert a.set(dict(reversed(leaves(b).items()))) == b, "the order matters"


def test_set_judges_the_result_and_not_the_way_there() -> None:
    swapped = Experiment(trait="owl", other_trait="wolf").set(trait="wolf", other_trait="owl")
    assert (swapped.trait, swapped.other_trait) == ("wolf", "owl")
    decayed = swapped.set({"student.optimization.weight_decay": 0.1, "student.optimization.optimizer": "adamw"})
    assert decayed.student.optimization.weight_decay == 0.1


def test_set_takes_whole_records() -> None:
    student = StudentConfig(part="lora")
    assert Experiment().set(student=student).student == student
    assert Experiment().set({"student": student, "student.lora_rank": 2}).student.lora_rank == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student.lr": 1}, ("student.lr", "StudentConfig", "'lr'", "optimization")),
        ({"student.optimization.rate": 1}, ("student.optimization.rate", "'rate'", "lr", "steps")),
        ({"students": 1}, ("'students'", "did you mean 'student'?", "sublim show owl")),
        ({"trait.name": "owl"}, ("trait.name", "no fields")),
        ({"student": 1, "student.part": "body"}, ("student.part",)),
        ({"student.part": "head"}, ("student.part", "'full', 'body', 'lora' or 'opening'")),
        ({"": 1}, ("trait",)),
        ({"student.": 1}, ("optimization",)),
        ({"seeds": [1, 1]}, ("Experiment.set(seeds=…)", "twice")),
        ({"bases": ["a"]}, ("two bases",)),
    ],
)
def test_set_refuses_in_one_line(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(Experiment().set, changes)
    for word in words:
        assert word in message, message


def test_an_error_names_how_the_change_was_asked_for() -> None:
    assert refused(Experiment().set, {"student.lr": 1}).startswith("Experiment.set(student.lr=…): StudentConfig")
    assert refused(StudentConfig().set, {"part": "head"}).startswith("StudentConfig.set(part=…): part")
    assert refused(changed, Experiment(), {"student.lr": 1}).startswith("--set student.lr: StudentConfig")
    several = {"seeds": [1, 1], "trait": "owl"}
    assert refused(changed, Experiment(), several).startswith("--set seeds, --set trait: seeds names")


# --- assignments on the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("student.optimization.lr=2e-4", "student.optimization.lr", 2e-4),
        ("lr=1E5", "lr", 1e5),
        ("lr=0.5", "lr", 0.5),
        ("seeds=[0, 1,2]", "seeds", [0, 1, 2]),
        ("bases=[lab-small-0, ./my base]", "bases", ["lab-small-0", "./my base"]),
        ("clip=null", "clip", None),
        ("duplicates=true", "duplicates", True),
        ("trait=owl", "trait", "owl"),
        ("about=is a=b ?", "about", "is a=b ?"),
        ("about='2e-4 of it'", "about", "2e-4 of it"),
    ],
)
def test_assignments_are_read_as_yaml(text: str, key: str, value: Any) -> None:
    read = parse_assignment(text)
    assert read == (key, value) and type(read[1]) is type(value)


def test_assignments_reach_the_experiment_also_inside_lists() -> None:
    assignments = ["student.optimization.lr=2e-4", "seeds=[3, 4]", "arms=[same-init]", "student.optimization.clip=null"]
    experiment = Experiment().set(dict(map(parse_assignment, assignments)))
    assert (experiment.student.optimization.lr, experiment.seeds, experiment.arms) == (2e-4, (3, 4), ("same-init",))


@pytest.mark.parametrize("text", ["", "lr", "=3", "lr=[1", "lr=2020-13-77", 'lr=!!int ""', "a\nb", "a='"])
def test_broken_assignments_are_refused_in_one_line(text: str) -> None:
    assert refused(parse_assignment, text).startswith("--set")


@given(st.text(), st.sampled_from(["", "trait=", "seeds=", "student.optimization.lr=", "student."]))
def test_whatever_is_typed_it_is_set_or_refused_in_one_line(text: str, start: str) -> None:
    try:
        key, value = parse_assignment(start + text)
        assert isinstance(Experiment().set({key: value}), Experiment)
    except SublimError as error:
        assert "\n" not in str(error)


# --- what it says about itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_every_field_is_explained_where_it_stands(kind: type[Config]) -> None:
    assert len(configs()) > 7
    for name, field in kind.model_fields.items():
        assert field.description and field.description.endswith("."), f"{kind.__name__}.{name} has no docstring"
    assert kind.__doc__


def test_every_field_has_a_default_that_passes_its_own_check() -> None:
    for kind in configs():
        if kind is Intervention:  # says what it is, always
            continue
        usual = kind()
        assert validate(kind, yaml.safe_load(yaml.safe_dump(usual.model_dump(mode="json"))), "default") == usual


# --- interventions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "kind=mask-tokens needs share or selection"),
        ({"share": 0.5, "selection": {"by": "random"}}, "share has no effect with kind=mask-tokens and a selection"),
        (
            {"kind": "freeze", "parameters": "*", "selection": {"by": "random"}},
            "selection has no effect with kind=freeze",
        ),
        ({"selection": {"by": "gradient"}}, "by=gradient needs trait"),
        (
            {"selection": {"by": "luck"}},
            "unknown score; valid: divergence, random, length, entangled, gradient, fisher, trak",
        ),
        ({"selection": {"by": "random", "share": 1}}, "selection.share"),
        ({"selection": {"by": "random", "part": 1}}, "valid keys: by, keep, share, trait"),
    ],
)
def test_a_mask_of_tokens_that_says_too_little_or_too_much_is_one_line(fields: dict[str, Any], words: str) -> None:
    changes = {"student.interventions": [{"kind": "mask-tokens", **fields}]}
    message = refused(Experiment().set, changes)
    assert words in message and "\n" not in message


def test_a_mask_by_score_is_written_and_read_and_a_mask_without_one_is_dumped_as_ever(tmp_path: Path) -> None:
    drawn = Intervention(kind="mask-tokens", share=0.5)
    assert drawn.model_dump() == {
        "kind": "mask-tokens", "direction": "", "at": "blocks.*.hook_resid_post", "share": 0.5, "parameters": ""
    }  # fmt: skip
    chosen = Experiment().set({"student.interventions": [{"kind": "mask-tokens", "selection": {"by": "divergence"}}]})
    (tmp_path / "e.yaml").write_text(chosen.to_yaml())
    assert read_yaml(Experiment, tmp_path / "e.yaml") == chosen
    assert chosen.student.interventions[0].selection == Selection(by="divergence", share=0.25, keep="top")


# --- pairs of bases ---------------------------------------------------------------------------------------------------


@given(st.integers(2, 5), st.integers(1, 40))
def test_replicates_go_through_all_ordered_pairs_of_bases_before_any_comes_again(bases: int, seeds: int) -> None:
    names = tuple(f"base-{i}" for i in range(bases))
    experiment = Experiment(bases=names, seeds=tuple(range(100, 100 + seeds)))
    pairs = [experiment.pair(seed) for seed in experiment.seeds]
    assert all(a != b and {a, b} <= set(names) for a, b in pairs)
    cycle = bases * (bases - 1)
    for start in range(0, seeds, cycle):
        part = pairs[start : start + cycle]
        assert len(set(part)) == len(part)
    more = experiment.set(seeds=(*experiment.seeds, 7, 8))
    assert [more.pair(seed) for seed in experiment.seeds] == pairs, "more replicates changed the earlier ones"


def test_a_single_base_is_its_own_partner_and_an_unknown_seed_is_refused() -> None:
    alone = Experiment(bases=("a",), arms=("same-init", "neutral"), seeds=(4, 5))
    assert alone.pair(5) == ("a", "a")
    assert "4, 5" in refused(alone.pair, 6)
    assert "0" in refused(Experiment().pair, 1)


def test_each_base_may_have_a_partner_of_its_own() -> None:
    own = Experiment(bases=("a", "b"), other_bases=("a2", "b2"), seeds=(4, 5, 6))
    assert [own.pair(seed) for seed in own.seeds] == [("a", "a2"), ("b", "b2"), ("a", "a2")]
    one = Experiment(bases=("a",), other_bases=("noise(a, sigma=0.1)",), seeds=(4,))
    assert one.pair(4) == ("a", "noise(a, sigma=0.1)")
    assert "other_bases has 1 and bases 2" in refused(lambda: Experiment().set(bases=["a", "b"], other_bases=["c"]))
    assert "no effect without an arm of two bases" in refused(
        lambda: Experiment().set(bases=["a"], other_bases=["c"], arms=["same-init", "base"])
    )
    assert "other_bases" not in Experiment().model_dump(), "a run without them keeps its key"


def test_a_mapping_changes_what_it_names_and_no_more() -> None:
    exp = Experiment(name="x").set({"student.extra_rounds": 2, "student.optimization.steps": 9})
    changed = exp.set(student={"part": "lora", "optimization": {"lr": 0.5}})
    assert changed == exp.set({"student.part": "lora", "student.optimization.lr": 0.5})
    assert exp.set(student=type(exp.student)(part="lora")).student.extra_rounds == 0, "a whole record replaces it"
    with pytest.raises(SublimError, match=r"Experiment\.set\(student=…\): StudentConfig has no field 'parts'"):
        exp.set(student={"parts": "lora"})


def test_fields_of_a_part_that_may_be_missing_can_be_set() -> None:
    exp = Experiment(name="x").set({"filter.selection": {"by": "random", "share": 0.5}})
    assert exp.set({"filter.selection.share": 0.25}).filter.selection == exp.filter.selection.model_copy(  # type: ignore[union-attr]
        update={"share": 0.25}
    )


@pytest.mark.parametrize("field", ["questions", "contexts"])
def test_what_is_asked_twice_is_refused_before_anything_runs(field: str) -> None:
    twice = {"questions": ["held-out", "held-out"], "contexts": ["plain", "plain"]}[field]
    with pytest.raises(SublimError, match=f"{field} names something twice"):
        Experiment(name="x").set({f"evaluation.{field}": twice})
