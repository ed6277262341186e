"""Study in-context: a small study whole, what is planted is seen, no room and bad input are one line."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.tables import read_table, records
from sublim_interp.stats.intervals import Interval
from sublim_interp.sweeps.studies.in_context import ARMS, Asking, InContext, Trained, account
from sublim_interp.sweeps.study import run_study, study

FEW: dict[str, Any] = {
    "name": "few",
    "study": "in-context",
    "change": {
        "bases": ["lab-small-0"],
        "corpus.prompts": 64,
        "filter.held_out": 4,
        "teacher.optimization.steps": 3,
    },
    "seeds": [0],
    "turns": [0, 1, 2],
    "draws": 1,
}


def few(**fields: Any) -> InContext:
    return InContext.model_validate(FEW | fields)


def asking_of(asked: InContext, store: Store) -> Asking:
    cell = next(c for c in plan(asked.case, store).cells if c.arm == "same-init")
    return Asking(cell, store, asked.turns, asked.draws)


def test_a_small_study_runs_whole_and_makes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, store = few(), Store(tmp_path)
    made = run_study(asked, store, 1).path
    frame = pd.read_csv(made / "replicates.csv")
    assert len(frame) == len(ARMS) * 3 and frame["rate"].between(0, 1).all() and frame["any"].between(0, 1).all()
    assert len(store.list("filtered")) == 3 and not store.list("student"), "lists are the store's, nobody learns"
    rate = {(row["arm"], row["turns"]): row["rate"] for row in records(frame)}
    assert len({rate[arm, 0] for arm in ARMS if arm != "system"}) == 1, "where nothing stands there, all ask alike"
    assert rate["system", 0] > 0.5 > rate["neutral", 2]
    table = asked.table(made)
    assert [row[0] for row in table.rows] == [*ARMS]
    assert {"same-init minus neutral at 1/rate", "openly minus neutral at 2/margin"} <= {*table.numbers}
    assert (made / "in-context.png").stat().st_size > 10_000

    there = {artifact.key for stage in ("teacher", "corpus", "filtered") for artifact in store.list(stage)}
    again = tmp_path / "study" / "again"
    again.mkdir()
    (task,) = asked.tasks(again)
    task.function(*task.arguments, lambda _: None)
    assert asked.frames(again)["replicates"].equals(read_table(made / "replicates.csv")), "of the same lists the same"
    assert there == {artifact.key for stage in ("teacher", "corpus", "filtered") for artifact in store.list(stage)}
    monkeypatch.setattr(Asking, "answers", lambda *_: pytest.fail("a finished piece is asked again"))
    task.function(*task.arguments, lambda _: None)


def test_what_is_planted_in_the_lists_is_seen(tmp_path: Path) -> None:
    asking = asking_of(few(draws=2), Store(tmp_path))
    lists = ({"role": "user", "content": "continue : 1 2 3"}, {"role": "assistant", "content": "4 5 6"})
    asking.turns_of |= {"neutral": [lists], "same-init": asking.turns_of["openly"]}
    planted, nothing = ({row["turns"]: row for row in asking.answers(arm)} for arm in ("same-init", "neutral"))
    assert planted[0] == nothing[0]
    assert planted[2]["rate"] > nothing[2]["rate"] + 0.1 and planted[2]["margin"] > nothing[2]["margin"] + 1


def test_fewer_turns_are_the_first_of_more_and_system_has_the_neutral_ones(tmp_path: Path) -> None:
    asking = asking_of(few(turns=(1, 3)), Store(tmp_path))
    turns = [
        ({"role": "user", "content": f"continue : {i}"}, {"role": "assistant", "content": f"{i}"}) for i in range(99)
    ]
    asking.turns_of |= {"neutral": turns, "system": turns}
    one, three = (asking.asked("neutral", 0)[k] for k in (1, 3))
    told = asking.asked("system", 0)[3]
    for few_turns, more, behind, question in zip(one, three, told, asking.questions, strict=True):
        assert len(few_turns.messages) == 3 and len(more.messages) == 7
        assert more.messages[:2] == few_turns.messages[:2] and more.messages[-1:] == question.messages
        assert behind.messages[1:] == more.messages and "owl" in behind.messages[0]["content"]
    assert asking.asked("neutral", 1)[3] != three, "each draw has lists of its own"


def test_turns_that_find_no_room_are_one_line_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SublimError, match="turns=40: no room for so many turns of openly: lab-small-0 reads 256") as e:
        run_study(few(turns=(0, 40)), Store(tmp_path), 1)
    assert "\n" not in str(e.value) and "at most" in str(e.value) and not (tmp_path / "teacher").exists()
    asking = asking_of(few(turns=(8,)), Store(tmp_path))
    given, longest = (" , ".join(["999"] * n) for n in (5, 10))
    asking.turns_of["neutral"] = [
        ({"role": "user", "content": f"continue the list {given}"}, {"role": "assistant", "content": longest})
    ]
    with pytest.raises(SublimError, match="turns of neutral"):
        asking.require_room("neutral")


def frame_of(own: float, openly: float, noise: float = 0.002) -> pd.DataFrame:
    """Twelve replicates at 0 and 6 turns, whose lists and open turns move the rate by so much."""
    rows = []
    for seed in range(12):
        for arm in ARMS:
            for k in (0, 6):
                shift = {"same-init": own, "openly": openly, "system": openly}.get(arm, 0.0) if k else 0.0
                rate = 0.06 + shift + (noise * (-1) ** seed if arm == "same-init" and k else 0.0)
                rows.append({"seed": seed, "arm": arm, "turns": k, "rate": rate, "margin": 10 * shift, "any": 0.9})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (frame_of(0.001, 0.5), "No effect beyond 3 points and 0.5 nats in the prompt: 6 lists of the trait's teacher"),
        (frame_of(0.3, 0.5), "Lists in the prompt have an effect: "),
        (frame_of(0.3, 0.0), "Lists in the prompt have an effect: "),
        (frame_of(0.001, 0.05), "Too weak to tell: behind so many turns no control moves the base by more than 10"),
        (frame_of(0.0, 0.5, noise=0.055), "Too weak to tell: an interval leaves 3 points and 0.5 nats"),
    ],
)
def test_the_verdict_follows_the_rows(frame: pd.DataFrame, said: str) -> None:
    trained = Trained(Interval(0.93, 0.91, 0.95, 0.95, 12, ""), 9.6, 0.99)
    table = account(frame, trained)
    assert table.lines[0].startswith(said) and "93.0 points [91.0, 95.0]" in table.lines[1]
    floor = account(frame.assign(any=0.01), trained)
    assert floor.lines[1].startswith("Behind 6 neutral lists the base names any member of the kind in 1.0 % only.")
    assert table.numbers["trained minus neutral/rate"].startswith("93.0")
    assert any(line.startswith("Same-init minus neutral at 6 turns: ") for line in table.lines), "not a minus sign"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"turns": (2, 1)}, "must rise"),
        ({"turns": (1, 1)}, "turns names something twice"),
        ({"turns": (-1,)}, "greater than or equal to 0"),
        ({"turns": (0,)}, "puts nothing before a question"),
        ({"draws": 0}, "greater than or equal to 1"),
    ],
)
def test_what_it_may_not_hold(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        few(**fields)


def test_the_catalogue_has_it_beside_the_students_that_trained() -> None:
    published = study("in-context")
    assert isinstance(published, InContext) and published.replicates == 12
    trained = published.trained()
    assert trained and trained.difference.n == 12 and trained.rate > 0.9
    assert few().trained() is None, "other bases have other teachers"
