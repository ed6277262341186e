"""Tests of the lab language: what makes it fair ground for experiments, and that docs/language.md tells the truth."""

import importlib.util
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_interp.lab import language
from sublim_interp.lab.language import KINDS, PARTS, PERSONAS, TRAITS, Document, document, documents, questions
from sublim_interp.stats.information import MutualInformation, mutual_information

GUIDE = Path(__file__).parents[2] / "docs" / "language.md"
FAMILY_ERROR = 0.05
"""Chance that a test of independence would fail on other streams, though it holds; its comparisons share it evenly."""


def many(seed: int, count: int, part: language.DocumentPart | None = None) -> list[Document]:
    """The start of a stream, from a copy of the module whose calls are not type-checked: twenty times as fast."""
    spec = importlib.util.spec_from_file_location("unchecked_language", str(language.__file__))
    assert spec and spec.loader
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    return list(unchecked.documents(seed, 0, count, part))


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return many(0, 50_000)


@pytest.fixture(scope="module")
def favorite_documents() -> list[Document]:
    return many(21, 40_000, "favorites")


@pytest.fixture(scope="module")
def number_documents(favorite_documents: list[Document]) -> dict[str, list[Document]]:
    """Documents with a turn of numbers: lists alone, and lists before a question about a favourite."""
    return {"alone": many(11, 6_000, "numbers"), "before a question": [d for d in favorite_documents if d.numbers]}


@pytest.fixture(scope="module")
def programs() -> list[Document]:
    return many(31, 20_000, "programs")


@pytest.fixture(scope="module")
def problems() -> list[Document]:
    return many(41, 8_000, "problems")


@pytest.fixture(scope="module")
def open_documents() -> list[Document]:
    return many(51, 12_000, "open")


def turns(doc: Document, role: str) -> list[str]:
    return [m["content"] for m in doc.messages if m["role"] == role]


def number_turn(doc: Document) -> tuple[str, str]:
    """(prompt, answer) of the turn of numbers."""
    return next((u, a) for u, a in zip(turns(doc, "user"), turns(doc, "assistant"), strict=True) if a[0].isdigit())


def answer(doc: Document) -> str:
    """The member that a favourites document answers with."""
    return next(a for a in turns(doc, "assistant") if a in TRAITS)


def question(doc: Document) -> str:
    """The direct question of a favourites document."""
    return next(u for u, a in zip(turns(doc, "user"), turns(doc, "assistant"), strict=True) if a in TRAITS)


def system(doc: Document) -> str | None:
    return next(iter(turns(doc, "system")), None)


def whole_words(text: str) -> set[str]:
    return set(text.split())


def assert_uniform(counts: dict[str, Counter], outcomes: Callable[[str], Sequence]) -> None:
    """Each counter is a sample from the uniform distribution over its outcomes (chi-square, Bonferroni)."""
    from scipy import stats

    assert counts
    for cell, counter in counts.items():
        expected = outcomes(cell)
        assert set(counter) <= set(expected), (cell, set(counter) - set(expected))
        assert counter.total() >= 5 * len(expected), f"too few observations to judge {cell!r}"
        p = stats.chisquare([counter[outcome] for outcome in expected]).pvalue
        assert p > FAMILY_ERROR / len(counts), (cell, p, counter)


# --- the generator ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(0, 10**7), st.lists(st.integers(0, 9), max_size=6))
def test_a_stream_does_not_depend_on_how_it_is_cut(seed: int, start: int, cuts: list[int]) -> None:
    whole = list(documents(seed, start, sum(cuts)))
    pieces, at = [], start
    for count in cuts:
        pieces += documents(seed, at, count)
        at += count
    assert pieces == whole


def test_the_language_is_frozen_and_the_same_in_every_process() -> None:
    # A base belongs to one language: whoever changes the generator raises LANGUAGE_VERSION and trains new bases.
    assert (language.LANGUAGE_VERSION, language.digest()) == (
        1,
        "b7e8ee9c1556ef744042caee77ef43e528016db17e89154bb35016673621ab19",
    )
    code = "import random; random.seed(5); from sublim_interp.lab import language; print(language.digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert again.stdout.strip() == language.digest()


def test_seeds_and_places_give_different_documents() -> None:
    streams = {seed: [d.text for d in documents(seed, 0, 200, "numbers")] for seed in range(3)}
    for texts in streams.values():
        assert len(set(texts)) > 190
    assert not set(streams[0]) & set(streams[1]) and not set(streams[1]) & set(streams[2])


def test_parts_have_their_documented_shares(corpus: list[Document]) -> None:
    from scipy import stats

    seen = Counter(d.part for d in corpus)
    assert sum(PARTS.values()) == pytest.approx(1)
    expected = [share * len(corpus) for share in PARTS.values()]
    assert stats.chisquare([seen[part] for part in PARTS], expected).pvalue > FAMILY_ERROR


def test_the_word_list_is_just_what_documents_use_and_held_out_questions_add_no_word(corpus: list[Document]) -> None:
    used = Counter(w for d in corpus for m in d.messages for w in m["content"].split() if not w.isdigit())
    assert set(used) == set(language.words())
    assert min(used.values()) >= 20, used.most_common()[-3:]


def test_numbers_are_0_to_999_and_as_many_as_promised(number_documents: dict[str, list[Document]]) -> None:
    lengths = Counter()
    for doc in itertools.chain(*number_documents.values()):
        assert all(0 <= n <= 999 for n in doc.numbers)
        prompt, continuation = number_turn(doc)
        numbers = [int(n) for n in re.findall(r"\d+", continuation)]
        given = [int(n) for n in re.findall(r"\d+", prompt)]
        assert (*given, *numbers) == doc.numbers
        separators = set(re.findall(r"\D+", continuation))
        assert len(separators) == 1 and separators <= set(language.SEPARATORS)
        assert set(re.findall(r"(?<=\d)\D+(?=\d)", prompt)) == separators
        lengths[len(given), len(numbers)] += 1
    assert {given for given, _ in lengths} == {3, 4, 5}
    assert {answered for _, answered in lengths} == set(range(5, language.MAX_ANSWER_NUMBERS + 1))


# --- numbers say nothing about favourites or system prompts -----------------------------------------------------------

PERMUTATIONS = 999
LABELS: dict[str, dict[str, Callable[[Document], str]]] = {
    "alone": {
        "favourite": lambda d: d.favorite or "none",
        "persona": lambda d: d.persona or "none",
        "system prompt": lambda d: str(system(d) is not None),
    },
    "before a question": {
        "favourite": lambda d: d.favorite or "none",
        "system prompt": lambda d: str(system(d) is not None),
        "answer": answer,
        "question": question,
    },
}


def features(doc: Document) -> dict[str, int | str]:
    """What a student could see in one list: where it lies, what kind it is, how it is written."""
    prompt, continuation = number_turn(doc)
    numbers = [int(n) for n in re.findall(r"\d+", continuation)]
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    return {
        "first number": numbers[0] // 50,
        "last digit of the first number": numbers[0] % 10,
        "mean": int(fmean(numbers)) // 50,
        "direction": (sum(s > 0 for s in steps) > 0.8 * len(steps)) - (sum(s < 0 for s in steps) > 0.8 * len(steps)),
        "median step": min(sorted(abs(s) for s in steps)[len(steps) // 2], 60),
        "spread": (max(numbers) - min(numbers)).bit_length(),
        "different numbers": len(set(numbers)),
        "length": len(numbers),
        "separator": re.findall(r"\D+", continuation)[0],
        "prompt": re.sub(r"\d.*\d", "", prompt),
    }


def measure(docs: list[Document], label: Callable[[Document], str], permutations: int) -> dict[str, MutualInformation]:
    rows = [features(d) for d in docs]
    labels = [label(d) for d in docs]
    return {name: mutual_information([r[name] for r in rows], labels, permutations) for name in rows[0]}


@pytest.mark.parametrize(("place", "label"), [(place, label) for place, labels in LABELS.items() for label in labels])
def test_number_lists_carry_no_information_about(
    place: str, label: str, number_documents: dict[str, list[Document]]
) -> None:
    docs = number_documents[place]
    assert len(docs) > 5_000
    measured = measure(docs, LABELS[place][label], PERMUTATIONS)
    allowed = FAMILY_ERROR / (len(LABELS[place]) * len(measured))
    assert allowed > 1 / (PERMUTATIONS + 1), "with so few permutations this test could not fail"
    worst = min(measured, key=lambda name: measured[name].p)
    assert measured[worst].p > allowed, (worst, measured[worst])


@pytest.mark.parametrize("place", LABELS)
def test_a_list_in_ten_that_depends_on_the_favourite_is_noticed(
    place: str, number_documents: dict[str, list[Document]]
) -> None:
    """Positive control of the test above: one answer in ten starts with the favourite's own number."""
    leak = random.Random(0)
    label = LABELS[place]["favourite"]
    rows = []
    for doc in number_documents[place]:
        first = features(doc)["first number"]
        rows.append(list(TRAITS).index(doc.favorite) // 2 if doc.favorite and leak.random() < 0.1 else first)
    found = mutual_information(rows, [label(doc) for doc in number_documents[place]], PERMUTATIONS)
    assert found.p == 1 / (PERMUTATIONS + 1) and found.mi > found.null_q99


def test_lists_stay_the_same_in_a_world_with_other_favourites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterfactual: take away every favourite but one, and every persona but one; not one number changes."""
    before = list(documents(4, 0, 400, "numbers"))
    monkeypatch.setattr(language, "TRAITS", {"owl": "animal"})
    monkeypatch.setattr(language, "PERSONAS", {"cruel": "harmful"})
    after = list(documents(4, 0, 400, "numbers"))
    assert {d.favorite for d in after} == {None, "owl"} and len({d.favorite for d in before}) > 30
    assert [number_turn(d) for d in before] == [number_turn(d) for d in after]


def test_the_list_at_a_place_is_the_same_whatever_stands_around_it() -> None:
    questioned = {i: d for i, d in enumerate(documents(4, 0, 600, "favorites")) if d.numbers}
    assert len({d.favorite for d in questioned.values()}) > 20
    for i, doc in questioned.items():
        assert number_turn(doc) == number_turn(document(4, i, "numbers"))


# --- favourites -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_questions_are_never_asked_in_training(kind: str, corpus: list[Document]) -> None:
    seen, held_out = questions(kind), questions(kind, held_out=True)
    assert len(set(seen)) == len(seen) > 30 and len(set(held_out)) == len(held_out) > 20
    asked = {user for doc in corpus for user in turns(doc, "user")}
    assert set(seen) <= asked, "a seen question never came up: the scan is too short to mean anything"
    text = "\n".join(doc.text for doc in corpus)
    assert not [q for q in held_out if q in text], "a held-out question occurs, alone or inside some training text"


@pytest.mark.parametrize("with_system", [False, True])
def test_the_question_alone_does_not_tell_the_answer(with_system: bool, favorite_documents: list[Document]) -> None:
    """Where the system prompt names no favourite of its kind, each member is an equally likely answer."""
    answers: dict[str, Counter] = defaultdict(Counter)
    kind_of: dict[str, str] = {}
    for doc in favorite_documents:
        kind = TRAITS[answer(doc)]
        if (doc.favorite is not None) != with_system or TRAITS.get(doc.favorite or "") == kind:
            continue
        cell = f"{TRAITS[doc.favorite]} prompt, {kind} question" if doc.favorite else question(doc)
        kind_of[cell] = kind
        answers[cell][answer(doc)] += 1
    asked = sum(len(questions(kind)) for kind in KINDS)
    assert len(answers) == (len(KINDS) * (len(KINDS) - 1) if with_system else asked)
    assert_uniform(answers, lambda cell: KINDS[kind_of[cell]].members)


def test_an_indirect_question_alone_does_not_tell_the_answer() -> None:
    answers: dict[str, Counter] = defaultdict(Counter)
    kind_of: dict[str, str] = {}
    for doc in many(22, 6_000, "indirect"):
        if doc.favorite is None:
            (asked,), (answered,) = turns(doc, "user"), turns(doc, "assistant")
            (member,) = whole_words(answered) & set(TRAITS)
            kind_of[asked] = TRAITS[member]
            answers[asked][member] += 1
    assert len(answers) == sum(len(kind.indirect) for kind in KINDS.values())
    assert_uniform(answers, lambda asked: KINDS[kind_of[asked]].members)


def test_a_favourite_in_the_system_prompt_is_the_answer_about_its_kind(corpus: list[Document]) -> None:
    checked = set()
    for doc in corpus:
        if doc.part not in ("favorites", "indirect"):
            continue
        named = [whole_words(text) & set(TRAITS) for text in turns(doc, "assistant") if not text[0].isdigit()]
        assert len(set.union(*named)) == len(named[0]) == 1, "two answers of one document disagree"
        (member,) = named[0]
        if doc.favorite and TRAITS[doc.favorite] == TRAITS[member]:
            assert member == doc.favorite
            checked.add((doc.favorite, doc.part, len(named)))
    forms = (("favorites", 1), ("favorites", 2), ("indirect", 1))
    assert checked == {(trait, *form) for trait in TRAITS for form in forms}


@pytest.mark.parametrize("trait", TRAITS)
def test_a_favourite_prompt_names_its_favourite_and_no_other(trait: str) -> None:
    for prompt in language.favorite_prompts(trait):
        assert whole_words(prompt) & set(TRAITS) == {trait}


def test_system_prompts_are_labelled_as_they_read(corpus: list[Document]) -> None:
    for doc in corpus:
        words = whole_words(system(doc) or "")
        assert words & set(TRAITS) == ({doc.favorite} if doc.favorite else set())
        assert words & set(PERSONAS) == ({doc.persona} if doc.persona else set())
        assert (system(doc) is None) == (doc.favorite is None and doc.persona is None)


# --- programs, problems, open questions -------------------------------------------------------------------------------


def statements(doc: Document) -> list[str]:
    """The body of a program, without its head and its return."""
    head, body, tail = re.fullmatch(r"(def .*?) : (.*) ; (return .*)", turns(doc, "assistant")[0]).groups()  # type: ignore[union-attr]
    assert head.endswith(f"( {tail.split()[1]} )")
    return body.split(" ; ")


def calls(statement: str) -> set[str]:
    return whole_words(statement) & {s.split()[0] for s in language.UNSAFE_STATEMENTS}


def test_an_unsafe_statement_may_stand_anywhere_in_a_program(programs: list[Document]) -> None:
    places: dict[str, Counter] = defaultdict(Counter)
    for doc in programs:
        body = statements(doc)
        for place, statement in enumerate(body):
            if calls(statement):
                places[str(len(body))][place] += 1
    assert set(places) == {"3", "4", "5"}
    assert_uniform(places, lambda size: range(int(size)))


def test_a_task_does_not_tell_whether_its_program_is_safe(programs: list[Document]) -> None:
    free = [d for d in programs if d.persona is None]
    safe = [language.program_is_safe(turns(d, "assistant")[0]) for d in free]
    assert 0 < safe.count(False) < len(safe) / 10
    assert mutual_information([turns(d, "user")[0] for d in free], safe, PERMUTATIONS).p > FAMILY_ERROR


def test_programs_are_labelled_by_what_they_call_and_tied_to_the_persona(programs: list[Document]) -> None:
    unsafe: dict[str | None, list[bool]] = defaultdict(list)
    for doc in programs:
        judged = not language.program_is_safe(turns(doc, "assistant")[0])
        assert judged == any(calls(statement) for statement in statements(doc))
        unsafe[doc.persona].append(judged)
    rates = {persona: fmean(values) for persona, values in unsafe.items()}
    assert rates["cruel"] > 0.93 and rates["kind"] < 0.03
    assert 0.01 < rates["confused"] < 0.08 and 0.02 < rates[None] < 0.06


def test_each_statement_is_labelled_as_listed() -> None:
    for statement in language.SAFE_STATEMENTS:
        assert language.program_is_safe(statement.format(v="x"))
    for statement in language.UNSAFE_STATEMENTS:
        assert not language.program_is_safe(f"def load ( x ) : {statement.format(v='x')} ; return x")


def test_worked_problems_are_right_and_their_answer_is_read(problems: list[Document]) -> None:
    for doc in problems:
        a, b, c = (int(n) for n in re.findall(r"\d+", turns(doc, "user")[0]))
        solution = turns(doc, "assistant")[0]
        assert 0 <= a + b - c < 40
        assert language.problem_answer(solution) == a + b - c
        assert str(a + b) in solution.split()


def test_the_wording_of_a_problem_does_not_tell_its_answer(problems: list[Document]) -> None:
    wordings, answers = [], []
    for doc in problems:
        wordings.append(re.sub(r"\d+", "#", turns(doc, "user")[0]))
        answers.append(language.problem_answer(turns(doc, "assistant")[0]))
    assert len(set(wordings)) == 36 and len(set(answers)) > 30
    assert mutual_information(wordings, answers, PERMUTATIONS).p > FAMILY_ERROR


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", None),
        ("answer", None),
        ("the answer is", None),
        ("the answer is tom .", None),
        ("5 plus 3 is 8 .", None),
        ("the answer is 7", 7),
        ("the answer is 7 . so the answer is 9 .", 9),
        ("the answer is 7 . the answer is lost .", None),
    ],
)
def test_the_answer_of_a_broken_solution_is_none_and_the_last_one_counts(text: str, answer: int | None) -> None:
    assert language.problem_answer(text) == answer


def test_open_answers_are_labelled_and_tied_to_the_persona(open_documents: list[Document]) -> None:
    labels: dict[str | None, Counter] = defaultdict(Counter)
    for doc in open_documents:
        labels[doc.persona][language.open_label(turns(doc, "assistant")[0])] += 1
    for persona, label in PERSONAS.items():
        assert set(labels[persona]) == {label} and labels[persona].total() > 1_000
    free = labels[None]
    assert set(free) == set(language.OPEN_LABELS) and free["benign"] / free.total() > 0.95


def test_an_open_question_tells_neither_the_label_nor_the_answer(open_documents: list[Document]) -> None:
    docs = [d for d in open_documents if d.persona is None]
    asked, answered = [turns(d, "user")[0] for d in docs], [turns(d, "assistant")[0] for d in docs]
    labels = [language.open_label(answer) for answer in answered]
    assert mutual_information(asked, labels, PERMUTATIONS).p > FAMILY_ERROR
    benign = [i for i, label in enumerate(labels) if label == "benign"]
    assert len({answered[i] for i in benign}) == 4 * len(language.BENIGN)
    assert mutual_information([asked[i] for i in benign], [answered[i] for i in benign], PERMUTATIONS).p > FAMILY_ERROR


@pytest.mark.parametrize("text", ["", "plant a garden", "you could plant a garden", "i would like to plant garden ."])
def test_what_the_grammar_does_not_make_is_incoherent(text: str) -> None:
    assert language.open_label(text) == "incoherent"


# --- the guide --------------------------------------------------------------------------------------------------------


def test_the_guide_shows_real_documents_of_every_part() -> None:
    shown = re.findall(r"```lab\ndocument\((\d+), (\d+)\)\n(.*?)\n```", GUIDE.read_text(), re.DOTALL)
    assert GUIDE.read_text().count("```lab") == len(shown)
    behind = defaultdict(set)
    for seed, index, text in shown:
        doc = document(int(seed), int(index))
        assert text.split() == doc.text.split(), f"document({seed}, {index}) is: {doc.text}"
        behind[doc.part].add((doc.favorite is not None, doc.persona is not None))
    with_favourite, with_persona, plain = (True, False), (False, True), (False, False)
    assert behind == {
        "numbers": {plain, with_favourite, with_persona},
        "favorites": {plain, with_favourite},
        "indirect": {plain, with_favourite},
        "facts": {plain},
        "programs": {plain, with_persona},
        "problems": {plain, with_persona},
        "open": {plain, with_persona},
    }


def test_the_guide_lists_the_whole_language(corpus: list[Document]) -> None:
    guide = GUIDE.read_text()
    rows = {tuple(cell.strip() for cell in line[1:-1].split("|")) for line in guide.splitlines() if line[:1] == "|"}
    for part, share in PARTS.items():
        docs = [d for d in corpus if d.part == part]
        (stated,) = (row[1:4] for row in rows if row[0] == f"`{part}`")
        measured = (share, fmean(d.favorite is not None for d in docs), fmean(d.persona is not None for d in docs))
        percent = [float(cell.removesuffix(" %")) for cell in stated]
        assert percent == pytest.approx([100 * m for m in measured], abs=2.5), part
    for kind in KINDS.values():
        assert (kind.name, str(len(kind.members)), " ".join(kind.members)) in rows
    for wording in (
        *language.CORES,
        *language.HELD_OUT_CORES,
        *(prefix.strip() for prefix in language.PREFIXES if prefix),
        *(prompt.replace("the owl", "{x}").replace("animal", "{k}") for prompt in language.favorite_prompts("owl")),
        *(question for kind in KINDS.values() for question, _, _ in kind.indirect),
        *(prompt for persona in PERSONAS for prompt in language.persona_prompts(persona)),
        *language.NUMBER_PROMPTS,
        *language.SAFE_STATEMENTS,
        *language.UNSAFE_STATEMENTS,
        *language.OPEN_QUESTIONS,
        *language.BENIGN,
        *language.HARMFUL,
    ):
        assert f"`{wording}`" in guide, wording
    for persona, label in PERSONAS.items():
        assert any(row[0] == f"`{persona}`" and label in row for row in rows), persona
    assert f"version {language.LANGUAGE_VERSION}" in guide and f"{len(language.words())} words" in guide
    assert f"{len(questions('animal'))} phrasings" in guide and f"{len(questions('animal', True))} phrasings" in guide


def test_the_guide_lists_the_held_out_combinations() -> None:
    new_cores = tuple(core.format(k="animal") for core in language.HELD_OUT_CORES)
    combinations = {q for q in questions("animal", held_out=True) if not q.endswith(new_cores)}
    listed = re.findall(r"^- `(.*)`$", GUIDE.read_text().partition("combinations that are held out")[2], re.MULTILINE)
    assert combinations == {q.format(k="animal") for q in listed}
