"""The report says what the frames hold: tables against hand computation, words against tables, files."""

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from planted import LIFTED, frames, pick
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.catalogue import Published
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables
from sublim_interp.experiments.tables import replicates as report_replicates
from sublim_interp.report.figures.arms import ARMS_FIGURE
from sublim_interp.report.notes import limits, sentences
from sublim_interp.report.terminal import terminal
from sublim_interp.report.verdict import finding, verdict
from sublim_interp.report.wording import capital, names
from sublim_interp.report.write import write


def table(
    arms: dict[str, list[float]], kl: dict[str, list[list[float]]] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames with given rates: arm → [seed], and KL: arm → [round][seed]; each round's rate is 1/100 higher."""
    results, distances = frames(seeds=len(next(iter(arms.values()))), arms=tuple(arms), rounds=0)
    for arm, rates in arms.items():
        for seed, rate in enumerate(rates):
            asked = pick(results, arm=arm, seed=seed, questions="held-out", context="plain", probe="owl")
            results.loc[asked.index, "rate"] = rate
    first = results, distances
    for arm, rounds in (kl or {}).items():
        for turn, values in enumerate(rounds):
            if turn:
                more, further = (pick(frame, arm=arm).assign(round=turn) for frame in first)
                results = pd.concat([results, more.assign(rate=more["rate"] + turn / 100)], ignore_index=True)
                distances = pd.concat([distances, further], ignore_index=True)
            for seed, value in enumerate(values):
                distances.loc[pick(distances, arm=arm, seed=seed, round=turn).index, "kl"] = value
    return results, distances


def rows(frame: pd.DataFrame, key: str) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in frame.to_dict("records")}


# Tables


def test_summary_agrees_with_hand_computation() -> None:
    results, distances = table(
        {"same-init": [0.9, 0.8, 1.0], "neutral": [0.06, 0.06, 0.06]}, {"same-init": [[1, 2, 6]]}
    )
    by_arm = rows(Tables(results, distances, "owl").summary, "arm")
    same = by_arm["same-init"]
    assert same["n"] == 3
    assert same["rate"] == pytest.approx(0.9)
    assert same["rate_low"] == pytest.approx(0.9 - 4.302653 * 0.1 / math.sqrt(3))  # Student t, 2 degrees of freedom
    assert same["rate_high"] == 1.0  # cut: a probability
    assert (same["kl"], same["kl_start"], same["kept"]) == pytest.approx((3, 0.06, 0.95))
    assert same["kl_high"] == pytest.approx(3 + 4.302653 * math.sqrt(7) / math.sqrt(3))  # not cut
    assert by_arm["neutral"]["rate_low"] == by_arm["neutral"]["rate_high"] == pytest.approx(0.06)


@pytest.mark.parametrize(
    "column, source",
    [
        ("rate", ("rate", "held-out", "plain")),
        ("margin", ("margin", "held-out", "plain")),
        ("indirect", ("rate", "indirect", "plain")),
        ("seen", ("rate", "seen", "plain")),
        ("numbers", ("rate", "held-out", "numbers")),
    ],
)
def test_each_column_comes_from_its_own_answers(column: str, source: tuple[str, str, str]) -> None:
    results, distances = frames(seeds=2, rounds=0)
    value, questions, context = source
    before = Tables(results, distances, "owl").summary
    own = (results["questions"] == questions) & (results["context"] == context) & (results["probe"] == "owl")
    results.loc[own, value] = 0.123
    after = Tables(results, distances, "owl").summary
    assert after[column].tolist() == pytest.approx([0.123] * len(after))
    untouched = [name for name in before.columns if not name.startswith((column, "further"))]
    pd.testing.assert_frame_equal(before.loc[:, untouched], after.loc[:, untouched])


def test_after_a_turn_is_after_one_on_the_experiments_own_channel() -> None:
    results, distances = frames(seeds=2, rounds=0)
    programs = results.assign(context=results["context"].replace({"numbers": "code"}))
    pd.testing.assert_frame_equal(Tables(programs, distances, "owl").summary, Tables(results, distances, "owl").summary)


def test_arms_stand_in_one_order_however_the_rows_come() -> None:
    results, distances = frames(seeds=3)
    shuffled = (results.sample(frac=1, random_state=0), distances.sample(frac=1, random_state=1))
    one, other = Tables(results, distances, "owl"), Tables(*shuffled, "owl")
    for name in ("replicates", "summary", "contrasts"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert list(other.summary["arm"]) == list(ARMS)


def test_equal_kl_is_the_first_round_as_near_as_the_arm_with_the_same_teacher() -> None:
    results, distances = table(
        {"same-init": [0.9] * 3, "same-init-b": [0.9] * 3, "cross-init": [0.05] * 3, "cross-init-b": [0.05] * 3},
        {
            "same-init": [[0.020, 0.020, 0.020]],
            "same-init-b": [[0.080, 0.080, 0.080]],
            "cross-init": [[0.09, 0.020, 0.05], [0.05, 0.01, 0.04], [0.01, 0.01, 0.03]],  # rounds 2, 0, never
            "cross-init-b": [[0.09, 0.09, 0.09], [0.07, 0.07, 0.07], [0.01, 0.01, 0.01]],  # B → A: same-init-b's .080
        },
    )
    each = report_replicates(results, distances, "owl")
    cross = pick(each, arm="cross-init", stage="equal KL")
    assert cross["round"].tolist() == [2, 0, 2]
    assert cross["matched"].tolist() == [True, True, False]
    assert cross["rate"].tolist() == pytest.approx([0.07, 0.05, 0.07])
    by_arm = rows(Tables(results, distances, "owl").summary, "arm")
    assert by_arm["cross-init"]["equal_kl"] == "matched in 2 of 3" and by_arm["cross-init"]["further_round"] == 2
    assert by_arm["cross-init"]["further_rate"] == pytest.approx(0.19 / 3)
    assert by_arm["cross-init"]["further_kl"] == pytest.approx((0.01 + 0.02 + 0.03) / 3)
    assert by_arm["cross-init"]["rate"] == pytest.approx(0.05)  # equal steps stay round 0
    back = pick(each, arm="cross-init-b", stage="equal KL")
    assert back["round"].tolist() == [1, 1, 1]
    assert by_arm["cross-init-b"]["equal_kl"] == "matched"


def test_a_crossed_arm_without_reference_is_not_called_matched() -> None:
    results, distances = frames(seeds=2, arms=("same-init", "cross-init-b"))
    cross = rows(Tables(results, distances, "owl").summary, "arm")["cross-init-b"]
    assert cross["equal_kl"] == "no same-init-b to compare with"
    assert cross["further_n"] == 0 and math.isnan(cross["further_rate"])


def test_questions_that_were_not_asked_leave_gaps_not_errors(tmp_path: Path) -> None:
    results, distances = frames(seeds=2, arms=("same-init", "cross-init-b"))
    results = pick(results, questions="held-out", context="plain")
    found = Tables(results, distances, "owl").summary
    for row in rows(found, "arm").values():
        assert math.isnan(row["indirect"]) and math.isnan(row["seen"]) and math.isnan(row["numbers"])
        assert row["rate"] > 0
    page = write(tmp_path, Experiment(name="owl"), Tables(results, distances, "owl"))
    assert "No two arms to compare" in page.read_text()


# Contrasts


def test_contrasts_agree_with_hand_computation() -> None:
    results, distances = table(
        {
            "same-init": [0.9, 0.8], "same-init-b": [0.7, 0.9], "neutral": [0.1, 0.2],
            "cross-init": [0.2, 0.1], "cross-init-b": [0.0, 0.2], "base": [0.05, 0.05],
        }
    )  # fmt: skip
    found = Tables(results, distances, "owl").contrasts
    steps = rows(pick(found, stage="equal steps", unit="replicate"), "contrast")
    assert steps["same-init − neutral"]["estimate"] == pytest.approx((0.8 + 0.6) / 2)
    assert steps["same-init − base"]["estimate"] == pytest.approx(0.8)
    diagonal = steps["2 × 2 diagonal"]
    assert diagonal["estimate"] == pytest.approx(((0.9 + 0.7 - 0.2 - 0.0) / 2 + (0.8 + 0.9 - 0.1 - 0.2) / 2) / 2)
    assert (diagonal["p"], diagonal["p_floor"]) == (0.5, 0.5)  # two replicates cannot do better
    assert "same-init − other-trait" not in steps


def test_crossed_students_of_either_teacher_are_compared_and_say_how_near_they_came() -> None:
    results, distances = table({"cross-init": [0.02, 0.03, 0.04] * 4, "cross-neutral": [0.05, 0.06, 0.08] * 4})
    found = Tables(results, distances, "owl").contrasts
    row = rows(found, "contrast")["cross-init − cross-neutral"]
    assert row["estimate"] == pytest.approx(-0.1 / 3) and row["high"] < 0 and row["note"] == ""
    arms = Tables(results, distances, "owl").summary
    left = {name: row["kl"] for name, row in rows(arms, "arm").items()}
    said = "\n".join(verdict(arms, found, "owl"))
    assert f"KL left: {left['cross-init']:.4f} and {left['cross-neutral']:.4f}" in said


def test_a_neutral_crossed_student_has_no_say_in_whether_the_two_by_two_is_matched() -> None:
    arms = ("same-init", "same-init-b", "neutral", "cross-init", "cross-init-b", "cross-neutral")
    results, distances = frames(seeds=4, arms=arms)
    distances.loc[distances["arm"] == "cross-neutral", "kl"] = 1.0
    by_arm = rows(Tables(results, distances, "owl").summary, "arm")
    assert (by_arm["cross-neutral"]["equal_kl"], by_arm["cross-init"]["equal_kl"]) == ("unmatched", "matched")
    diagonal = pick(Tables(results, distances, "owl").contrasts, contrast="2 × 2 diagonal", unit="replicate")
    assert not diagonal["note"].str.contains("unmatched").any()


def test_an_interval_of_a_contrast_of_rates_ends_where_contrasts_do() -> None:
    results, distances = table({"same-init": [1.0, 0.9, 1.0], "neutral": [0.0, 0.0, 0.1]})
    row = rows(Tables(results, distances, "owl").contrasts, "contrast")["same-init − neutral"]
    assert row["high"] == 1 and row["low"] < row["estimate"] < 1


def test_differences_are_paired_by_seed() -> None:
    results, distances = table({"same-init": [0.5, 0.7, 0.9], "neutral": [0.1, 0.3, 0.5]})
    results = results.drop(pick(results, arm="neutral", seed=1).index)
    found = rows(Tables(results, distances, "owl").contrasts, "contrast")["same-init − neutral"]
    assert found["n"] == 2
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx((0.4, 0.4, 0.4))


def test_the_base_pair_is_unordered_and_its_seeds_are_averaged_first() -> None:
    results, distances = frames(seeds=6, bases=3)  # ordered pairs 01, 12, 20, 02, 10, 21: three unordered ones
    found = Tables(results, distances, "owl").contrasts
    diagonal = pick(found, contrast="2 × 2 diagonal", stage="equal steps")
    each, by_pair = diagonal.to_dict("records")
    assert (each["unit"], each["n"], by_pair["unit"], by_pair["n"]) == ("replicate", 6, "base pair", 3)
    assert (each["base_pairs"], each["bases"], by_pair["base_pairs"], by_pair["bases"]) == (3, 3, 3, 3)
    assert by_pair["estimate"] == pytest.approx(each["estimate"])  # two seeds a pair
    assert by_pair["note"] == "shared bases"
    per_seed = {}
    own = pick(results, probe="owl", questions="held-out", context="plain", round=0)
    for seed, cell in own.groupby("seed"):
        rate = cell.set_index("arm")["rate"]
        per_seed[seed] = (rate["same-init"] + rate["same-init-b"] - rate["cross-init"] - rate["cross-init-b"]) / 2
    pairs = [(per_seed[0] + per_seed[4]) / 2, (per_seed[1] + per_seed[5]) / 2, (per_seed[2] + per_seed[3]) / 2]
    half = 4.302653 * np.std(pairs, ddof=1) / math.sqrt(3)
    assert by_pair["high"] == pytest.approx(np.mean(pairs) + half)


def test_disjoint_pairs_carry_no_warning() -> None:
    results, distances = frames(seeds=2, bases=2)
    other = frames(seeds=2, bases=2)[0].replace({"lab-0": "lab-2", "lab-1": "lab-3"})
    results = pd.concat([results, other.assign(seed=other["seed"] + 2)])
    distances = pd.concat([distances, distances.assign(seed=distances["seed"] + 2)])
    found = Tables(results, distances, "owl").contrasts
    pairs = pick(found, unit="base pair")
    assert pairs["bases"].tolist() == [4, 4] and pairs["note"].tolist() == ["", ""]


def test_one_replicate_has_no_interval_and_says_so() -> None:
    results, distances = frames(seeds=1, arms=("same-init", "neutral", "cross-init"))
    found = Tables(results, distances, "owl").contrasts
    assert len(found) == 2
    for row in rows(found, "contrast").values():
        assert math.isnan(row["low"]) and math.isnan(row["high"]) and row["estimate"] > 0.8
        assert "one replicate" in row["note"].split("; ")
    for row in rows(Tables(results, distances, "owl").summary, "arm").values():
        assert row["n"] == 1 and math.isnan(row["rate_low"])


@pytest.mark.parametrize("arms", [("same-init",), ("base",), ("teacher", "neutral")])
def test_arms_without_a_partner_give_no_contrast(arms: tuple[str, ...]) -> None:
    results, distances = frames(seeds=2, arms=arms)
    found = Tables(results, distances, "owl").contrasts
    assert found.empty and "estimate" in found.columns
    who = {"same-init": "Students of the teacher's own base", "base": "Untouched bases", "teacher": "neutral students"}
    assert verdict(Tables(results, distances, "owl").summary, found, "owl")[0].startswith(
        f"{who[arms[0]]} say “owl” in "
    )


def test_positive_control_finds_what_was_planted() -> None:
    found = Tables(*frames(), "owl").contrasts
    planted = found["contrast"] != "cross-init − cross-neutral"
    assert min(found.loc[planted, "low"].tolist()) > 0.8
    (neither,) = found.loc[~planted].to_dict("records")
    assert neither["low"] < 0 < neither["high"] and neither["p"] > 0.05


def test_negative_control_equal_arms_cover_zero() -> None:
    found = Tables(*frames(lifted={}), "owl").contrasts
    assert len(found) == 9
    assert max(found["low"].tolist()) < 0 < min(found["high"].tolist())
    assert min(found["p"].tolist()) > 0.05


# Sentences


def said(*args: Any, **kwargs: Any) -> str:
    results, distances = frames(*args, **kwargs)
    found = Tables(results, distances, "owl").summary, Tables(results, distances, "owl").contrasts
    return "\n".join(verdict(*found, "owl"))


@pytest.mark.parametrize("seeds", [1, 12])
def test_the_finding_states_the_numbers_of_the_table(seeds: int) -> None:
    found = Tables(*frames(seeds=seeds), "owl").summary
    arms = rows(found, "arm")
    controls = ("neutral", "other-trait", "cross-init", "cross-init-b", "cross-neutral", "base")
    above = math.floor(100 * max(arms[name]["rate"] for name in controls)) + 1
    who = "The student says" if seeds == 1 else "Students of the teacher's own base say"
    first = said(seeds=seeds).splitlines()[0]
    rate = f"{100 * arms['same-init']['rate']:.1f} %"
    assert first == f"{who} “owl” in {rate} of answers; the controls stay below {above} %."


def test_no_control_stays_below_a_student_that_learnt_nothing() -> None:
    results, distances = table({"same-init": [0.061, 0.063], "neutral": [0.05, 0.05], "base": [0.06, 0.06]})
    own, control = "Students of the teacher's own base say “owl” in 6.2 % of answers", "base, in 6.0 % of answers"
    expected = f"{own}; the highest control, {control}."
    assert finding(Tables(results, distances, "owl").summary, "owl") == expected
    results, distances = table({"same-init": [0.9], "neutral": [0.05]})
    expected = "The student says “owl” in 90.0 % of answers; the control, neutral, stays below 6 %."
    assert finding(Tables(results, distances, "owl").summary, "owl") == expected


@pytest.mark.parametrize("seeds", [1, 2, 11])
def test_no_claim_of_significance_below_twelve(seeds: int) -> None:
    words = said(seeds=seeds)
    assert "zero" not in words and " p = " not in words
    assert "below 12, no significance is claimed" in words


def test_twelve_replicates_are_spoken_of() -> None:
    words = said()
    assert re.search(r"same-init − neutral: \+\S+ \[.*\] points\. It differs from zero: sign-flip p = ", words)
    assert "2 × 2 diagonal at equal KL: +" in words and "claimed" not in words
    words = said(lifted={})
    assert "It cannot be told from zero" in words and "It differs from zero" not in words


def test_no_verdict_rests_on_unmatched_students() -> None:
    words = said(rounds=0)  # crossed students stay at .05 where the others reach .012
    assert "cross-init never came as close to its teacher as same-init: KL 0.0" in words
    assert "same-init − neutral" in words and "diagonal" not in words and "same-init − cross-init" not in words


def test_what_limits_a_contrast_is_said_in_sentences_that_stand_alone() -> None:
    found = Tables(*frames(rounds=0), "owl").contrasts
    one, *more = limits(found)
    assert one == (
        "same-init − cross-init: One direction only. Base B may be hard to teach; run both directions to tell."
    )
    never = "Crossed students never came as close to their teacher, so this comparison"
    assert more == [
        f"2 × 2 diagonal: {never} is at equal steps, not at equal distance.",
        "2 × 2 diagonal, 2 × 2 diagonal, equal KL: Pairs share bases, so the interval over pairs is too narrow.",
        f"2 × 2 diagonal, equal KL: {never} takes their last round, at a greater distance.",
    ]
    assert all(len(sentence.split()) <= 25 for line in limits(found) for sentence in re.split(r"[.:;] ", line))
    assert limits(Tables(*table({"same-init": [0.9], "neutral": [0.1]}), "owl").contrasts) == [
        "One replicate gives no interval."
    ]


def test_notes_of_older_runs_are_read_as_those_of_today() -> None:
    older = {
        "half of the 2 × 2, base B may simply be hard to move": "one direction",
        "no verdict rests on this, 24 of 24 crossed students are unmatched": "unmatched 24 of 24",
        "no verdict rests on this, 3 of 24 crossed students are unmatched": "unmatched 3 of 24",
        "pairs share bases, so the interval is too narrow": "shared bases",
        "one replicate, no interval": "one replicate",
        "one base pair, no interval": "one base pair",
    }
    for stage in ("equal steps", "equal KL"):
        for old, code in older.items():
            (sentence,) = sentences({"note": old, "stage": stage})
            assert [sentence] == sentences({"note": code, "stage": stage})
            assert sentence not in (old, code) and sentence.endswith(".")
        both = sentences({"note": "; ".join(older), "stage": stage})
        assert both == sentences({"note": "; ".join(older.values()), "stage": stage}) and len(both) == len(older)
    assert sentences({"note": "", "stage": "equal steps"}) == []
    assert sentences({"note": "Teachers differ in size.", "stage": "equal steps"}) == ["Teachers differ in size."]


def test_few_bases_limit_what_is_said_of_initialisation() -> None:
    assert "come from 3 bases" in said(bases=3)
    assert "8 or more" not in said(bases=13, seeds=13)
    assert "8 or more" not in said(arms=("same-init", "neutral"))


def test_only_four_and_more_names_numbered_without_a_gap_are_told_by_the_first_and_last() -> None:
    assert names([f"lab-small-{i}" for i in range(12)]) == "lab-small-0 to lab-small-11"
    for apart in (
        ["b-0", "b-1", "b-2"],
        ["b-0", "b-1", "b-2", "b-4"],
        ["b-0", "b-1", "c-2", "c-3"],
        ["b-1", "b-0", "b-2", "b-3"],
        ["b", "b-1", "b-2", "b-3"],
    ):
        assert names(apart) == ", ".join(apart)


def test_a_sentence_begins_with_a_capital_and_a_sign_stays_as_it_is() -> None:
    assert [capital(words) for words in ("noise of .1", "σ .1 less", "")] == ["Noise of .1", "σ .1 less", ""]


# Terminal


@pytest.mark.parametrize("seeds", [1, 12])
def test_terminal_fits_eighty_columns_with_nothing_cut(seeds: int) -> None:
    results, distances = frames(seeds=seeds, lifted=dict.fromkeys(LIFTED, 0.9999))
    found = Tables(results, distances, "owl").summary, Tables(results, distances, "owl").contrasts
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal(*found, title="owl"))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for row in rows(found[0], "arm").values():
        assert row["arm"] in text and f"{100 * row['rate']:.1f}" in text


# Files


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a reader and a browser would meet."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data
        for tag in self.open[-1:]:
            self.inside.setdefault(tag, []).append(data)


def test_write_makes_every_file_and_the_same_bytes_again(tmp_path: Path) -> None:
    results, distances = frames(seeds=2)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tables = Tables(results, distances, "owl")
        path = write(tmp_path / name, Experiment(name="owl"), tables, key="k" * 64, versions={"torch": "2"})
        assert path == tmp_path / name / "report.html"
        written.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"results.csv", "distances.csv", "summary.csv", "contrasts.csv", "report.html"}


def test_tables_read_back_as_they_were(tmp_path: Path) -> None:
    results, distances = frames(seeds=2)
    write(tmp_path, Experiment(name="owl"), Tables(results, distances, "owl"))
    found = Tables(results, distances, "owl").summary, Tables(results, distances, "owl").contrasts
    back = tuple(pd.read_csv(tmp_path / f"{name}.csv") for name in ("summary", "contrasts"))
    for frame, before, words in zip(back, found, ("equal_kl", "note"), strict=True):
        pd.testing.assert_frame_equal(frame.fillna({words: ""}), before, rtol=1e-14)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "distances.csv"), distances, rtol=1e-14)


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    tables = Tables(*frames(seeds=2), "owl")
    page = Page(write(tmp_path, Experiment(name="owl"), tables, key="k" * 64).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "link" not in tags and "iframe" not in tags
    sources = [value for _, attrs in page.tags for name in ("src", "srcset") if (value := attrs.get(name))]
    assert len(sources) == 4 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    links = [attrs for _, attrs in page.tags if "href" in attrs]  # nothing but the figures themselves, to be kept
    assert [link["download"] for link in links] == ["arms.svg", "probes.svg"]
    assert all(str(link["href"]) in sources for link in links)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert "url(" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_tells_what_was_run(tmp_path: Path) -> None:
    experiment = Experiment(name="owl", about="Does an owl pass?", arms=("same-init", "neutral"))
    tables = Tables(*frames(seeds=2, arms=("same-init", "neutral")), "owl")
    path = write(tmp_path, experiment, tables, key="0123abcd", versions={"torch": "2.13.0"})
    page = Page(path.read_text(encoding="utf-8"))
    text = page.text
    assert page.inside["h1"] == [finding(tables.summary, "owl").replace(" %", "\u00a0%")]
    assert ARMS_FIGURE.caption in text
    assert experiment.about in text and "0123abcd" in text and "2.13.0" in text
    assert experiment.to_yaml() in text
    for arm, what in ARMS.items():
        assert (what.meaning in text) == (arm in experiment.arms)
    assert "For comparison" not in text and "Crossed students" not in text


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\" $\\bad$"  # the last is broken mathematics to a plotting library
    results, distances = frames(seeds=1)
    results = results.replace({"owl": evil, "lab-0": evil})
    experiment = Experiment(name="owl", about=evil, trait=evil, bases=(evil, "b"))
    found = Tables(results, distances, evil).summary, Tables(results, distances, evil).contrasts
    beside = Published(*found, name=evil, key=evil)
    path = write(tmp_path, experiment, Tables(results, distances, evil), beside, key=evil, versions={evil: evil})
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count(evil) > 10


def test_the_published_run_stands_beneath_and_is_labelled(tmp_path: Path) -> None:
    full = frames()
    beside = Published(Tables(*full, "owl").summary, Tables(*full, "owl").contrasts, "headline", "feedbeef")
    live = Tables(*frames(seeds=1, arms=("same-init", "neutral", "cross-init", "base"), rounds=0), "owl")
    text = Page(write(tmp_path, Experiment(name="owl"), live, beside).read_text(encoding="utf-8")).text
    own, label = text.index("1 replicate"), text.index("For comparison: the published run")
    assert own < text.index("In numbers") < label < text.index("other-trait")
    assert "trained on" not in text[:label] and "to equal KL: unmatched" in text[:label]  # no further round was run
    assert "headline" in text[label:] and "feedbeef" in text[label:] and "One replicate: no interval" in text[:label]


# Faults


def test_bad_frames_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    results, distances = frames(seeds=1)
    asked = results.query("questions != 'held-out'")
    for bad, message in [
        ((results.replace({"neutral": "nuetral"}), distances), "unknown arm 'nuetral'.*valid arms: teacher, same-init"),
        ((pd.concat([results, results]), distances), "results hold arm .* twice"),
        ((results, pd.concat([distances, distances])), "distances hold arm .* twice"),
        ((asked, distances), "no answers about 'owl' to held-out questions"),
        ((results.query("probe != 'owl'"), distances), "no answers about 'owl'"),
    ]:
        with pytest.raises(SublimError, match=message):
            write(tmp_path, Experiment(name="owl"), Tables(*bad, "owl"))
    assert not list(tmp_path.iterdir())
