"""Tests of making lab bases: the same bits every time, also after a kill, and a card that tells how to do it again."""

import errno
import functools
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from killing import Killed, kill_after, kill_move
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import parse_assignment
from sublim_interp.lab import language
from sublim_interp.lab.pretraining import HELD_OUT_SEED, fork_name, held_out_kl, held_out_losses, new_model, pretrain
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.lab.tokenizer import build_tokenizer
from sublim_interp.models.base import CARD, resolve_base
from sublim_interp.training.resume import Resume
from sublim_interp.training.settings import Optimization

RECIPE = Pretraining(d_model=16, layers=1, heads=2, d_mlp=16).set({"optimization.steps": 6, "optimization.batch": 6})


@pytest.fixture(autouse=True)
def few_held_out_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on 40 documents a part instead of 300, and a state kept after every second step instead of 200."""
    monkeypatch.setattr(
        "sublim_interp.lab.pretraining.held_out_losses", functools.partial(held_out_losses, documents=40)
    )
    monkeypatch.setattr("sublim_interp.lab.pretraining.held_out_kl", functools.partial(held_out_kl, documents=40))
    monkeypatch.setattr("sublim_interp.training.resume.Resume", functools.partial(Resume, every=2))


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def leftovers(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir() if p.name.startswith("."))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted base."""
    patch = pytest.MonkeyPatch()
    patch.setattr("sublim_interp.lab.pretraining.held_out_losses", functools.partial(held_out_losses, documents=40))
    directory = tmp_path_factory.mktemp("made") / "tiny"
    pretrain(RECIPE, directory)
    patch.undo()
    return directory


def test_a_base_made_twice_is_bit_identical(made: Path, tmp_path: Path) -> None:
    torch.rand(3)  # what was drawn before must not matter
    pretrain(RECIPE, tmp_path / "deep" / "tiny")
    assert contents(tmp_path / "deep" / "tiny") == contents(made)
    assert leftovers(tmp_path / "deep") == []


@pytest.mark.parametrize("last", [0, 1, 4])
def test_a_killed_pretraining_goes_on_and_ends_in_the_same_bits(last: int, made: Path, tmp_path: Path) -> None:
    directory, steps = tmp_path / "tiny", []
    with pytest.raises(Killed):
        pretrain(RECIPE, directory, kill_after(last))
    assert not directory.exists(), "a base that is not finished must not look like one"
    pretrain(RECIPE, directory, lambda step, _: steps.append(step))
    assert steps == list(range(last // 2 * 2, 6)), "it went on from the last state that was kept"
    assert contents(directory) == contents(made)
    assert leftovers(tmp_path) == []


def test_a_kill_while_the_finished_base_is_written_leaves_nothing_half_done(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sublim_interp.lab.pretraining._model_card", killed)
        with pytest.raises(Killed):
            pretrain(RECIPE, tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    pretrain(RECIPE, tmp_path / "tiny")
    assert contents(tmp_path / "tiny") == contents(made)


@pytest.mark.parametrize("what", ["recipe", "language", "machine"])
def test_what_another_recipe_language_or_machine_began_is_not_gone_on_with(
    what: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    with monkeypatch.context() as patch:
        if what == "language":
            patch.setattr(language, "digest", lambda: "another")
        if what == "machine":
            patch.setattr("sublim_interp.core.device.fingerprint", lambda: {"torch": "another"})
        begun = RECIPE.set(init_seed=5) if what == "recipe" else RECIPE
        with pytest.raises(Killed):
            pretrain(begun, tmp_path / "tiny", kill_after(4))
    pretrain(RECIPE, tmp_path / "tiny", lambda step, _: steps.append(step))
    assert steps[0] == 0
    assert contents(tmp_path / "tiny") == contents(made)
    assert len(leftovers(tmp_path)) == 1, "what was begun is still there"


def test_two_processes_do_not_make_the_same_base(tmp_path: Path) -> None:
    def second(_step: int, _loss: float) -> None:
        with pytest.raises(SublimError, match="is being made by another process"):
            pretrain(RECIPE, tmp_path / "tiny")

    pretrain(RECIPE, tmp_path / "tiny", second)
    assert (tmp_path / "tiny" / "model.safetensors").is_file() and not leftovers(tmp_path)


def test_a_full_disk_is_one_line_and_the_training_goes_on_later(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sublim_interp.lab.pretraining._write", full)
        with pytest.raises(SublimError, match=r"tiny is not finished: No space left on device.*"):
            pretrain(RECIPE, tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    pretrain(RECIPE, tmp_path / "tiny")
    assert contents(tmp_path / "tiny") == contents(made)


@pytest.mark.parametrize("kind", ["directory", "base", "file"])
def test_what_is_already_there_is_never_touched(kind: str, made: Path, tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    if kind == "directory":
        place.mkdir()
    elif kind == "base":
        place = made
    else:
        place.write_text("mine")
    before = contents(place) if place.is_dir() else place.read_bytes()
    with pytest.raises(SublimError) as caught:
        pretrain(RECIPE, place)
    assert str(place) in str(caught.value) and "exists" in str(caught.value) and "\n" not in str(caught.value)
    assert (contents(place) if place.is_dir() else place.read_bytes()) == before


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SublimError) as caught:
        pretrain(RECIPE, tmp_path / "file" / "tiny")
    assert str(tmp_path / "file") in str(caught.value) and "\n" not in str(caught.value)


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is_and_how_good(made: Path) -> None:
    card = json.loads((made / CARD).read_text())
    assert (card["language"], card["language_version"]) == ("lab", language.LANGUAGE_VERSION)
    assert card["language_digest"] == language.digest()
    model = resolve_base(str(made)).load()
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert Pretraining.model_validate(card["pretraining"]) == RECIPE
    assert card["held_out_loss"] == held_out_losses(model, build_tokenizer(), documents=40)
    assert set(card["held_out_loss"]) == set(language.PARTS)
    page = (made / "README.md").read_text()
    assert f"{card['parameters']:,} parameters" in page
    for part, loss in card["held_out_loss"].items():
        assert f"| {part} | {loss:.3f} |" in page


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        RECIPE.set(
            init_seed=7,
            data_seed=3,
            order_seed=4,
            optimization=Optimization(
                optimizer="sgd", lr=0.012345678901, schedule="linear", warmup=1, steps=1, batch=2, beta1=0.5, clip=None
            ),
        ),
    ],
)
def test_the_command_in_the_card_is_the_same_recipe(recipe: Pretraining, tmp_path: Path) -> None:
    pretrain(recipe, tmp_path / "my-base")
    page = (tmp_path / "my-base" / "README.md").read_text()
    (command,) = re.findall(r"^    (sublim pretrain (?:.*\\\n)*.*)$", page, re.MULTILINE)
    program, verb, name, *options = shlex.split(command.replace("\\\n", ""))
    assert (program, verb, name) == ("sublim", "pretrain", "my-base")
    assert options[::2] == ["--set"] * (len(options) // 2)
    settings = dict(map(parse_assignment, options[1::2]))
    assert Pretraining().set(settings) == recipe
    every = {*Pretraining.model_fields, *(f"optimization.{name}" for name in Optimization.model_fields)}
    unshuffled = set() if recipe.order_seed else {"order_seed"}
    later = {f"optimization.{name}" for name in Optimization.LATER}
    left_out = {"optimization", "forks", "start", "imitates", *unshuffled, *later}
    assert set(settings) == every - left_out, "what is left out changes with the defaults"
    assert ("shuffled, by order seed 4" in page) == bool(recipe.order_seed)


# --- forks ------------------------------------------------------------------------------------------------------------


def test_forks_are_bases_of_the_training_that_made_them(made: Path, tmp_path: Path) -> None:
    last = RECIPE.optimization.steps
    pretrain(RECIPE.set(forks=[0, 2, 4]), tmp_path / "tiny")
    weights = "model.safetensors"
    assert (tmp_path / "tiny" / weights).read_bytes() == (made / weights).read_bytes(), "keeping forks changes nothing"
    digests = {step: resolve_base(str(tmp_path / fork_name("tiny", step))).digest for step in (0, 2, 4)}
    assert len({*digests.values(), resolve_base(str(made)).digest}) == 4
    card = json.loads((tmp_path / fork_name("tiny", 2) / CARD).read_text())
    assert card["step"] == 2 and json.loads((made / CARD).read_text())["step"] == last
    start = resolve_base(str(tmp_path / fork_name("tiny", 0))).load()
    fresh = new_model(RECIPE, len(build_tokenizer()))
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), fresh.parameters(), strict=True))


def test_a_fork_carried_on_from_step_0_is_the_whole_training_and_another_order_parts_it(
    made: Path, tmp_path: Path
) -> None:
    pretrain(RECIPE.set(forks=[0]), tmp_path / "tiny")
    start = str(tmp_path / fork_name("tiny", 0))
    pretrain(RECIPE.set(start=start), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    steps: list[int] = []
    pretrain(RECIPE.set(forks=[3]), tmp_path / "late")
    start = str(tmp_path / fork_name("late", 3))
    pretrain(RECIPE.set(start=start, data_seed=1), tmp_path / "other", lambda step, _: steps.append(step))
    assert steps == list(range(3, RECIPE.optimization.steps))
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (made / "model.safetensors").read_bytes()
    assert str(tmp_path) not in (tmp_path / "other" / CARD).read_text(), "a card names no place on a machine"


def test_what_is_no_fork_of_the_recipe_is_not_carried_on(made: Path, tmp_path: Path) -> None:
    for change, named in (({"d_mlp": 8}, "d_mlp"), ({}, "step")):
        with pytest.raises(SublimError, match=named):
            pretrain(RECIPE.set({"start": str(made), **change}), tmp_path / "tiny")
        assert not list(tmp_path.iterdir())


def test_a_killed_training_with_forks_ends_with_all_of_them(tmp_path: Path) -> None:
    recipe = RECIPE.set(forks=[0, 2, 5])
    with pytest.raises(Killed):
        pretrain(recipe, tmp_path / "tiny", kill_after(4))
    assert not list(tmp_path.glob("tiny*")), "nothing half-made is shown"
    pretrain(recipe, tmp_path / "tiny")
    pretrain(recipe, tmp_path / "whole")
    for step in recipe.forks:
        assert (
            contents(tmp_path / fork_name("tiny", step)).keys() == contents(tmp_path / fork_name("whole", step)).keys()
        )
        a, b = (resolve_base(str(tmp_path / fork_name(name, step))).digest for name in ("tiny", "whole"))
        assert a == b


@pytest.mark.parametrize("moment", ["tiny-step000002", "tiny", ".partial"])
def test_a_kill_while_finished_bases_are_moved_is_mended_by_the_next_run(
    moment: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.set(forks=[0, 2])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_move(patch, moment)
        pretrain(recipe, tmp_path / "tiny")
    steps: list[int] = []
    card = pretrain(recipe, tmp_path / "tiny", lambda step, _: steps.append(step))
    assert not steps, "nothing is trained again"
    assert card["held_out_loss"] == json.loads((made / CARD).read_text())["held_out_loss"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny", "tiny-step000000", "tiny-step000002"]
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def read(recipe: Pretraining, directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trains `directory` and returns the numbers of the documents of its updates, in order."""
    numbers: list[int] = []
    recipe = recipe.set(data_seed=5)  # a stream that nothing but the updates reads
    document = language.document

    def noted(seed: int, number: int, part: language.DocumentPart | None = None) -> language.Document:
        if seed == recipe.data_seed:
            numbers.append(number)
        return document(seed, number, part)

    with monkeypatch.context() as patch:
        patch.setattr(language, "document", noted)
        pretrain(recipe, directory)
    return numbers


def test_another_order_is_the_same_documents_shuffled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read(RECIPE, tmp_path / "plain", monkeypatch)
    assert plain == sorted(plain)
    shuffled = read(RECIPE.set(order_seed=1), tmp_path / "shuffled", monkeypatch)
    assert shuffled != plain and sorted(shuffled) == plain
    assert read(RECIPE.set(order_seed=1, init_seed=1), tmp_path / "init", monkeypatch) == shuffled
    other = read(RECIPE.set(order_seed=2), tmp_path / "other", monkeypatch)
    assert other not in (plain, shuffled) and sorted(other) == plain


def test_a_fork_carried_on_in_another_order_reads_each_document_that_was_left_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read(RECIPE.set(forks=[2]), tmp_path / "tiny", monkeypatch)
    start = str(tmp_path / fork_name("tiny", 2))
    left = plain[2 * RECIPE.optimization.batch :]
    assert read(RECIPE.set(start=start), tmp_path / "again", monkeypatch) == left
    shuffled = read(RECIPE.set(start=start, order_seed=1), tmp_path / "shuffled", monkeypatch)
    assert shuffled != left and sorted(shuffled) == left
    page = (tmp_path / "shuffled" / "README.md").read_text()
    assert "Carried on from tiny-step000002" in page and "shuffled, by order seed 1" in page


def test_which_documents_a_shuffled_fork_has_left_is_not_known(tmp_path: Path) -> None:
    pretrain(RECIPE.set(order_seed=1, forks=[0, 2]), tmp_path / "tiny")
    start = str(tmp_path / fork_name("tiny", 2))
    with pytest.raises(SublimError, match="tiny-step000002 is of a base with order_seed=1; only one with 0 goes on"):
        pretrain(RECIPE.set(start=start, order_seed=1), tmp_path / "more")
    pretrain(RECIPE.set(start=str(tmp_path / fork_name("tiny", 0)), order_seed=1), tmp_path / "whole")
    weights = "model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "tiny" / weights).read_bytes()


# --- the base ---------------------------------------------------------------------------------------------------------


def test_a_base_is_an_ordinary_directory_that_speaks_the_lab_language(made: Path) -> None:
    base = resolve_base(str(made))
    assert base.language == "lab" and base.shape["d_model"] == 16
    model = base.load()
    ids = base.prompt_ids([{"role": "user", "content": language.questions("animal")[0]}])
    answer = model.generate(  # type: ignore[operator]
        **base.tokenizer.pad({"input_ids": [ids]}, return_tensors="pt"), max_new_tokens=3, do_sample=False
    )
    assert answer.shape[1] > len(ids)
    assert model.config.pad_token_id == base.tokenizer.pad_token_id
    assert model.config.eos_token_id == base.tokenizer.eos_token_id
    assert not model.config.tie_word_embeddings
    assert max(len(base.tokenizer(d.text)["input_ids"]) for d in language.documents(0, 0, 300)) <= (  # type: ignore[arg-type]
        model.config.max_position_embeddings
    )


def test_pretraining_learns_every_part_of_the_language(tmp_path: Path) -> None:
    optimization = RECIPE.optimization.set(steps=60, warmup=5, lr=0.02, batch=16)
    recipe = RECIPE.set(optimization=optimization)
    losses: list[float] = []
    card = pretrain(recipe, tmp_path / "tiny", lambda _, loss: losses.append(loss))
    guess = math.log(len(build_tokenizer()))
    assert losses[0] == pytest.approx(guess, abs=0.2) and losses[-1] < 0.75 * losses[0]
    assert all(loss < 0.95 * guess for loss in card["held_out_loss"].values())


def test_the_two_seeds_choose_the_weights_and_the_documents_apart(tmp_path: Path) -> None:
    first = {}
    for init, data in ((0, 0), (1, 0), (0, 1)):
        recipe = RECIPE.set({"init_seed": init, "data_seed": data, "optimization.steps": 1, "optimization.lr": 1e-30})
        losses: list[float] = []
        pretrain(recipe, tmp_path / f"{init}-{data}", lambda _, loss, losses=losses: losses.append(loss))
        weights = (tmp_path / f"{init}-{data}" / "model.safetensors").read_bytes()
        first[init, data] = (weights, losses[0])
    assert first[0, 0][0] == first[0, 1][0] != first[1, 0][0], "the data seed has no say in the initial weights"
    assert len({loss for _, loss in first.values()}) == 3


def test_initial_weights_follow_from_their_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = new_model(RECIPE, 50)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    b = new_model(RECIPE, 50)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- held-out loss ----------------------------------------------------------------------------------------------------


def test_held_out_loss_is_the_mean_over_the_assistants_tokens_alone(made: Path) -> None:
    base = resolve_base(str(made))
    model, tokenizer = base.load(), base.tokenizer
    measured = held_out_losses(model, tokenizer, documents=25)
    for part in language.PARTS:
        total, tokens = 0.0, 0
        for doc in language.documents(HELD_OUT_SEED, 0, 25, part):
            if part == "favorites" and doc.numbers:
                continue
            for n, message in enumerate(doc.messages):
                if message["role"] != "assistant":
                    continue
                prompt = base.prompt_ids(doc.messages[:n])
                answer = [*base.answer_ids(message["content"]), tokenizer.eos_token_id]
                with torch.no_grad():
                    logs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
                total -= sum(logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
                tokens += len(answer)
        assert measured[part] == pytest.approx(total / tokens, abs=2e-4), part


# --- a base that imitates another -------------------------------------------------------------------------------------


def test_a_base_may_learn_another_s_predictions(tmp_path: Path) -> None:
    """From another initialisation it comes nearer to the other's function, and its card says how near."""
    optimization = RECIPE.optimization.set(steps=60, warmup=5, lr=0.02, batch=16)
    own = RECIPE.set(optimization=optimization, init_seed=1)
    first = pretrain(RECIPE.set(optimization=optimization), tmp_path / "first")
    words = pretrain(own, tmp_path / "words")
    imitates = pretrain(own.set(imitates=str(tmp_path / "first")), tmp_path / "imitates")
    assert "held_out_kl" not in first and "held_out_kl" not in words
    assert set(imitates["held_out_kl"]) == set(language.PARTS)
    target, apart = (resolve_base(str(tmp_path / name)) for name in ("first", "words"))
    plain = held_out_kl(apart.load(), target.load(), target.tokenizer, documents=40)
    assert 0 <= sum(imitates["held_out_kl"].values()) < 0.9 * sum(plain.values())


def test_what_is_imitated_must_have_the_same_tokens(tmp_path: Path) -> None:
    with pytest.raises(SublimError, match="imitates lab-digits-0: it has other tokens than tokens=numbers"):
        pretrain(RECIPE.set(imitates="lab-digits-0"), tmp_path / "tiny")
    with pytest.raises(SublimError, match="nowhere"):
        pretrain(RECIPE.set(imitates="nowhere"), tmp_path / "tiny")
    assert not [*tmp_path.iterdir()], "nothing is begun"
