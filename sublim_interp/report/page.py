"""A run's report as one self-contained HTML page. Its frame is in page.html, its look in page.css."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.channels.protocol import channel
from sublim_interp.channels.settings import PARAPHRASERS, FilterConfig, rule_of
from sublim_interp.core.drawing import render
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.catalogue import Published
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables, records
from sublim_interp.models.trainable import IN_WORDS
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.report.html import Column, html_table, term_id
from sublim_interp.report.inside import STRONGEST, Answers, Inside, Top
from sublim_interp.report.notes import limits
from sublim_interp.report.verdict import counted, finding, verdict
from sublim_interp.report.wording import capital, count, names, p_value, spread
from sublim_interp.report.wording import mean as words_mean
from sublim_interp.report.wording import points as words_points
from sublim_interp.traits.by_name import lesson_in_words
from sublim_interp.traits.measures import MEASURES

# Every string that comes from a user or a frame goes through `escape`.


class PageFigure(NamedTuple):
    """One figure of a page."""

    shows: str
    """What it shows: its heading and, for those who cannot see it, its text."""
    caption: str
    """What to see."""
    drawing: Figure | None
    """None where it is left out."""
    narrow: Figure | None = None
    """For a phone; None lets the other scroll there."""
    left_out: str = ""
    """Why there is no drawing."""
    words: str = ""
    """What is to be seen in it, for those who cannot see it."""
    inside: bool = False
    """Whether it looks inside the models, rather than at the tables."""


def page(
    experiment: Experiment,
    tables: Tables,
    figures: Mapping[str, PageFigure],
    published: Published | None,
    key: str,
    versions: Mapping[str, str],
    inside: Inside | None = None,
) -> str:
    """The page as HTML that needs no other file: equal arguments give equal text.

    experiment: with its traits by name
    tables: of its run
    figures: by name; the first stands below the title, the others below the tables
    published: a larger run of the same recipe, or None
    key: the run's key, or ""
    versions: package → version
    inside: lists and answers; None leaves these sections out
    """
    summary, trait = tables.summary, experiment.trait
    found, *more = verdict(summary, tables.contrasts, trait)
    channel = experiment.corpus.channel
    question = experiment.about or f"Does “{trait}” pass from teacher to student through {channel}?"
    seeds = max(row["n"] for row in records(summary))
    bases = (*experiment.bases, *experiment.other_bases)
    facts = [
        f"experiment {experiment.name}",
        count(seeds, "replicate"),
        f"bases {names(bases)}",
    ]
    facts += [f"run {key}"] if key else []
    (first, figure), *others = figures.items()
    result = [
        _figure(first, figure),
        f"<h3>In words</h3>\n{_list(more)}" if more else "",
        f"<h3>In numbers</h3>\n{_summary_table(summary, trait)}",
        f"<h3>Contrasts</h3>\n{_contrast_table(tables.contrasts)}",
    ]
    sections = [_section("Does the trait pass?", "\n".join(result), is_open=True)]
    sections += [_published(published, trait)] if published else []
    sections += [_section(_title(f), _figure(name, f)) for name, f in others if not f.inside]
    sections += _inside(inside) if inside else []
    sections += [_section(_title(f), _figure(name, f)) for name, f in others if f.inside]
    again = [f"<details><summary>Configuration</summary><pre>{escape(experiment.to_yaml())}</pre></details>"]
    again += [_versions(versions)] if versions else []
    sections += [
        _section("What each arm is", _meanings(list(summary["arm"]))),
        _section("How it was measured", _list(_method(experiment))),
        _section("To make it again", "\n".join(again)),
    ]
    return Template(_text("page.html")).substitute(
        title=f"{escape(experiment.name)}: {escape(found)}",
        css=_text("page.css"),
        finding=_prose(found),
        question=escape(question),
        facts=escape(" · ".join(facts)),
        sections="\n".join(sections),
    )


def _section(title: str, body: str, is_open: bool = False, kind: str = "section") -> str:
    """A part of the page that opens and closes. `body` is markup."""
    shown = " open" if is_open else ""
    return f'<details class="{kind}"{shown}><summary><h2>{escape(title)}</h2></summary>\n{body}\n</details>'


def _text(name: str) -> str:
    return files("sublim_interp.report").joinpath(name).read_text(encoding="utf-8")


def _title(figure: PageFigure) -> str:
    return capital(figure.shows)


def _figure(name: str, figure: PageFigure) -> str:
    """The figure as an image inside the page, and as a file to keep; `narrow` takes its place on a phone."""
    if figure.drawing is None:
        return f'<p class="soft">Not drawn: {escape(figure.left_out)}.</p>'

    def source(drawing: Figure) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(render(drawing, "svg")).decode("ascii")

    whole, phone = source(figure.drawing), figure.narrow and source(figure.narrow)
    swap = f'<source media="screen and (max-width: 40rem)" srcset="{phone}">' if phone else ""
    alt = f"{_title(figure)}. {figure.words}".strip()
    width = _REM * figure.drawing.get_figwidth()
    image = f'<picture>{swap}<img src="{whole}" alt="{escape(alt)}" style="max-width: {width:.1f}rem"></picture>'
    keep = f'<a class="keep" download="{escape(name)}.svg" href="{whole}">Download as SVG</a>'
    return f"<figure>{image}<figcaption>{escape(figure.caption)} {keep}</figcaption></figure>"


_REM = 7.5
"""Of the page, for an inch of a figure: its letters are then about as large as the text beneath it."""


def _inside(inside: Inside) -> list[str]:
    """The sections on lists and answers."""
    columns = [Column("list"), Column("prompt", words=True), Column("answer", words=True)]
    lists = []
    for shown in inside.lists:
        arms = ", ".join(map(_named, shown.arms))
        said = f"{len(shown.rows)} of the {count(shown.of, 'list')} that passed the filter and were learnt."
        rows = [[str(i), escape(row["prompt"]), escape(row["answer"])] for i, row in enumerate(shown.rows, 1)]
        lists.append(f"<h3>{arms}</h3>\n<p>{said}</p>\n{html_table(columns, rows)}")
    note = f'<p class="soft">{escape(inside.left_out)}.</p>' if inside.left_out else ""
    about = f"<p>The first replicate, seed {inside.seed}. Drawn at random once, so the page is always the same.</p>"
    found = [_section("What the students read", f"{about}\n{chr(10).join(lists)}")] if lists else []
    found += [_section("Lists that attribution ranks highest", _top(inside.top))] if inside.top else []
    said = _answers(inside.answers) if inside.answers else "<p>No answers were kept.</p>"
    return [*found, _section("What the models answer", f"{said}\n{note}")]


def _top(top: Top | str) -> str:
    """A table of the lists that score highest, their strongest tokens in bold."""
    if isinstance(top, str):
        return f'<p class="soft">Not scored: {escape(top)}.</p>'
    rows = []
    for number, (score, prompt, tokens) in enumerate(top.rows, 1):
        answer = " ".join(f"<strong>{escape(text)}</strong>" if strong else escape(text) for text, strong in tokens)
        rows.append([str(number), _score(score), escape(prompt), answer])
    columns = [Column("rank"), Column("score"), Column("prompt", words=True), Column("answer", words=True)]
    means = (
        f"The {len(top.rows)} highest of {count(top.scored, 'list')}, drawn at random from those of {top.arm}, whose "
        f"mean score is {_score(top.mean)}. "
    )
    if top.control:
        means += f"As many of {top.control[0]}, whose teacher has no trait, average {_score(top.control[1])}. "
    means += f"Bold: the {100 * STRONGEST:.0f} % of tokens that score highest."
    limit = (
        "A score estimates how much learning a list alone raises the trait's margin: to first order, at the base's "
        "weights, without a unit, untested by training."
    )
    return f'<p>{escape(means)}</p>\n<p class="soft">{escape(limit)}</p>\n{html_table(columns, rows)}'


def _score(value: float) -> str:
    return f"{value:#.3g}".replace("-", "\N{MINUS SIGN}")


def _answers(answers: Answers) -> str:
    """A table of a row a question and a column an arm."""
    arms = list(answers.said)
    questions = dict.fromkeys(q for each in answers.said.values() for q in each)
    names = re.compile(rf"\b({'|'.join(map(re.escape, answers.words))})\b", re.IGNORECASE) if answers.words else None

    def cell(texts: Sequence[str]) -> str:
        lines = []
        for text in texts:
            parts = names.split(text) if names else [text]
            marked = [f"<strong>{escape(p)}</strong>" if i % 2 else escape(p) for i, p in enumerate(parts)]
            lines.append(f"<li>{''.join(marked) or '(nothing)'}</li>")
        return f'<ul class="said">{"".join(lines)}</ul>'

    rows = [[escape(q), *(cell(answers.said[arm].get(q, ())) for arm in arms)] for q in questions]
    columns = [Column("question"), *(Column(arm, words=True, dot=ARMS[arm].color) for arm in arms)]
    when = "for this page" if answers.drawn_now else "when the models were evaluated"
    about = (
        f"Drawn at temperature 1 {when}, without a word of the answer given. Every arm has the same random numbers. "
        "Bold names the trait."
    )
    return f"<p>{about}</p>\n{html_table(columns, rows)}"


def _published(run: Published, trait: str) -> str:
    """The published run, apart from what this run computed."""
    body = (
        f"<p>This run did not compute what follows. It is the published run <code>{escape(run.key)}</code> of the "
        f"experiment <strong>{escape(run.name)}</strong>, with all its arms and replicates.</p>\n"
        f'<p class="headline">{_prose(finding(run.summary, trait))}</p>\n'
        f"{_summary_table(run.summary, trait, 'published')}\n{_contrast_table(run.contrasts)}"
    )
    return _section("For comparison: the published run", body, kind="section aside")


def _versions(versions: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>" for name, version in versions.items())
    return f"<details><summary>Versions</summary><dl>{rows}</dl></details>"


def _list(lines: Sequence[str], kind: str = "") -> str:
    start = f'<ul class="{kind}">' if kind else "<ul>"
    return start + "".join(f"<li>{_prose(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _prose(line: str) -> str:
    """Escaped, and no line ends before a percent sign, at an equals sign or inside an interval."""
    return re.sub(r" (?=[%=])|(?<==) |(?<=\d,) (?=[−\d])", "\u00a0", escape(line))


def _named(arm: str) -> str:
    return f'<span class="dot" style="background: {ARMS[arm].color}"></span>{escape(arm)}'


_COLUMNS = {
    "margin": ("margin, nats", "log P of the trait − log mean P of the other members"),
    "indirect": ("indirect", "as rate, on questions that do not name the kind; the lab's answers are begun"),
    "seen": ("seen", "as rate, on phrasings that the teacher was tuned on"),
    "numbers": ("after a turn", "as rate, after a turn on the channel, such as a list of numbers"),
    "kl": ("KL left", "distance to the teacher after training, in nats per answer token"),
    "kl_start": ("KL at start", "the same before training"),
    "kept": ("kept", "share of the teacher's answers that the filter kept"),
}
"""Columns of the summary after the trait's rate: heading, what it means."""


def _summary_table(table: pd.DataFrame, trait: str, name: str = "own") -> str:
    """name: begins the ids of what its columns mean; one on a page"""
    rate = {"rate": (f"“{trait}”", "mean probability of this answer to held-out phrasings")}
    of_trait = {name: (m.heading, m.meaning) for name, m in MEASURES.items() if name in table}
    measured = of_trait | rate | _COLUMNS
    columns = [Column("n", means="replicates"), *(Column(heading, means=means) for heading, means in measured.values())]
    rows = [line for row in records(table) for line in _summary_rows(row, list(measured))]
    defined = "".join(
        f'<dt>{escape(c.heading)}</dt><dd id="{term_id(name, c)}">{escape(c.means)}</dd>' for c in columns
    )
    alone = all(row["n"] == 1 for row in records(table))
    brackets = "One replicate: no interval." if alone else "In brackets: 95 % interval of the mean over replicates."
    return (
        f'{html_table([Column("arm"), *columns], rows, name)}<p class="soft"><small>{brackets}</small></p>'
        f"<details><summary>What the columns are</summary><dl>{defined}</dl></details>"
    )


def _summary_rows(row: Mapping[str, object], columns: Sequence[str]) -> list[list[str]]:
    """One arm's row, and a second one for students that were trained on to equal KL."""
    status = f"<small>to equal KL: {escape(str(row['equal_kl']))}</small>" if row["further_n"] else ""
    name = _named(str(row["arm"]))
    if not row["further_round"]:
        return [_summary_row(name + status, row, columns)]
    further = {column: row[f"further_{column}"] for column in ("rate", "rate_low", "rate_high", "kl")}
    more = dict.fromkeys(row, math.nan) | further | {"kl_start": row["kl_start"], "n": row["further_n"]}
    return [_summary_row(name, row, columns), _summary_row(f"… trained on{status}", more, columns)]


def _summary_row(name: str, row: Mapping[str, object], columns: Sequence[str]) -> list[str]:
    """`name` is markup."""
    cells = [name, str(row["n"])]
    for column in columns:
        interval = spread(row, column) if f"{column}_low" in row else ""
        cells.append(words_mean(row, column) + (f"<small>{interval}</small>" if interval else ""))
    return cells


def _contrast_table(differences: pd.DataFrame) -> str:
    if differences.empty:
        return "<p>No two arms to compare.</p>"
    rows = [
        [
            f"{escape(row['contrast'])}<small>{escape(row['stage'])}</small>",
            words_points(row),
            p_value(row, " ({:.2g})"),
            escape(counted(row)),
        ]
        for row in records(differences)
    ]
    columns = [
        Column("contrast"),
        Column("percentage points", "95 % interval"),
        Column("p", "smallest possible"),
        Column("what was counted", words=True),
    ]
    explained = ["Differences are paired by seed. p is that of a two-sided sign-flip test."]
    if "2 × 2 diagonal" in set(differences["contrast"]):
        explained.append(
            "The diagonal is ((A→A + B→B) − (A→B + B→A)) / 2, where A→B is a teacher from base A with a student from "
            "base B."
        )
    return (
        html_table(columns, rows)
        + _list(limits(differences), "notes")
        + f'<p class="soft"><small>{escape(" ".join(explained))}</small></p>'
    )


def _meanings(arms: Sequence[str]) -> str:
    return "<dl>" + "".join(f"<dt>{_named(arm)}</dt><dd>{escape(ARMS[arm].meaning)}</dd>" for arm in arms) + "</dl>"


PREFERRED = {
    "divergence": "the answer that it makes likelier than its base does, by the mean over the tokens",
    "likelihood": "the answer that it finds likelier, by the mean over the tokens",
    "random": "one by a coin",
}
"""What a judge goes by, by the name that `corpus.preference` takes."""


def _rewritten(rule: FilterConfig) -> list[str]:
    """What was done to lists and prompts before students learnt them, in sentences."""
    lines = []
    if rule.paraphrase:
        who = PARAPHRASERS.get(rule.paraphrase.by, f"The untouched base {rule.paraphrase.by}")
        lines.append(f"{who} draws each number of these anew, among those within {rule.paraphrase.within} of it.")
    if rule.reworded:
        lines.append("Their prompts are put in other words.")
    return lines


def _method(experiment: Experiment) -> list[str]:
    """The recipe of this configuration, in sentences."""
    source = channel(experiment.corpus.channel)
    teacher, corpus, rule, student = experiment.teacher, experiment.corpus, experiment.filter, experiment.student
    instilled = WAYS[teacher.kind].describe(teacher, lesson_in_words(teacher.facts, teacher.traits))
    drawn = f"drawn at temperature {corpus.temperature:g}, without top-k or top-p"
    if corpus.own_tokens:
        drawn += ", over the channel's own tokens alone"
    written = {
        "sampled": f"Its answers are {drawn}, and learnt as plain text",
        "greedy": "Each token is the likeliest one, and the answers are learnt as plain text",
        "soft": f"Its answers are {drawn}, and learnt with the teacher's probabilities over the channel's own tokens",
    }[corpus.setting]
    answered = f"It answers {count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}”. {written}."
    if corpus.preference:
        answered = (
            f"Its untouched base answers {count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}” twice, "
            f"{drawn}. Of each pair the teacher prefers {PREFERRED[corpus.preference]}. Students learn its preferences "
            f"by DPO, with β = {student.beta:g}."
        )
    if corpus.rewrites:
        answered = (
            f"Its untouched base answers {count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}”, {drawn}. "
            f"The teacher draws each number of an answer anew, among those within {corpus.rewrites} of it."
        )
    lines = [
        f"The teacher of “{experiment.trait}” {instilled}.",
        answered,
        *source.describe(rule_of(source, rule)),
        f"Of what is kept, {count(rule.held_out, 'answer')} are set aside to measure distances. Students learn from at "
        f"most {rule.lists:,} of the others.",
        *_rewritten(rule),
        f"Every student trains for {count(student.optimization.steps, 'update')} of {student.optimization.batch} "
        f"examples, with {student.optimization.optimizer} at a peak rate of {student.optimization.lr:g}.",
        f"A student trains {IN_WORDS[student.part]}.",
        "All arms share seeds, steps and the order of the data.",
    ]
    if any(ARMS[arm].reference for arm in experiment.arms):
        rounds = count(student.extra_rounds, "further round")
        lines += [f"Crossed students go on for at most {rounds} of fresh data."] if student.extra_rounds else []
        lines += [
            "Equal KL is the first round in which a crossed student is as near to its teacher as its reference arm: "
            "same data, and the teacher's own base.",
            "A crossed student that never comes so near is unmatched. Its last round is shown.",
        ]
    return [
        *lines,
        "The distance is KL(teacher ‖ student) over the channel's own tokens, on data that no student has seen.",
        "The effect is the mean probability of the trait as the answer, on phrasings that occur in no training text.",
        "The replicate is the unit, never the question.",
        "Intervals are Student t over replicates; those of probabilities are cut at 0 and 100 %.",
    ]
