"""A run's report as one self-contained HTML page. Its frame is in page.html, its look in page.css."""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.channels.protocol import channel
from sublim_interp.channels.settings import rule_of
from sublim_interp.core.drawing import render
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.catalogue import Published
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import Tables, records
from sublim_interp.models.trainable import IN_WORDS
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.report.notes import limits
from sublim_interp.report.verdict import counted, finding, verdict
from sublim_interp.report.wording import count, names, p_value, spread
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


def page(
    experiment: Experiment,
    tables: Tables,
    figures: Sequence[PageFigure],
    published: Published | None,
    key: str,
    versions: Mapping[str, str],
) -> str:
    """The page as HTML that needs no other file: equal arguments give equal text.

    experiment: with its traits by name
    tables: of its run
    figures: the first stands below the title, the others below the tables
    published: a larger run of the same recipe, or None
    key: the run's key, or ""
    versions: package → version
    """
    summary, trait = tables.summary, experiment.trait
    found, *more = verdict(summary, tables.contrasts, trait)
    channel = experiment.corpus.channel
    question = experiment.about or f"Does “{trait}” pass from teacher to student through {channel}?"
    seeds = max(row["n"] for row in records(summary))
    facts = [f"experiment {experiment.name}", count(seeds, "replicate"), f"bases {names(experiment.bases)}"]
    facts += [f"run {key}"] if key else []
    return Template(_text("page.html")).substitute(
        title=f"{escape(experiment.name)}: {escape(found)}",
        css=_text("page.css"),
        finding=_prose(found),
        question=escape(question),
        facts=escape(" · ".join(facts)),
        first_figure=_figure(figures[0], heading=False),
        in_words=f"<h2>In words</h2>\n{_list(more)}" if more else "",
        summary=_summary_table(summary, trait),
        contrasts=_contrast_table(tables.contrasts),
        published=_published(published, trait) if published else "",
        more_figures="\n".join(_figure(figure) for figure in figures[1:]),
        arms=_meanings(list(summary["arm"])),
        method=_list(_method(experiment)),
        configuration=escape(experiment.to_yaml()),
        versions=_versions(versions) if versions else "",
    )


def _text(name: str) -> str:
    return files("sublim_interp.report").joinpath(name).read_text(encoding="utf-8")


def _figure(figure: PageFigure, heading: bool = True) -> str:
    shows = figure.shows[:1].upper() + figure.shows[1:]
    head = f"<h2>{escape(shows)}</h2>\n" if heading else ""
    if figure.drawing is None:
        return f'{head}<p class="soft">Not drawn: {escape(figure.left_out)}.</p>'
    return head + _image(figure.drawing, shows, figure.caption, figure.narrow)


def _image(figure: Figure, alt: str, caption: str, narrow: Figure | None) -> str:
    """The figure as an image inside the page; `narrow` takes its place on a phone, else the figure scrolls there."""

    def source(drawing: Figure) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(render(drawing, "svg")).decode("ascii")

    swap = f'<source media="screen and (max-width: 40rem)" srcset="{source(narrow)}">' if narrow else ""
    image = f'<picture>{swap}<img src="{source(figure)}" alt="{escape(alt)}"></picture>'
    kind = "" if narrow else ' class="wide"'
    return f"<figure{kind}><div>{image}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _published(run: Published, trait: str) -> str:
    """The published run, apart from what this run computed."""
    return (
        '<section class="aside"><h2>For comparison: the published run</h2>\n'
        f"<p>This run did not compute what follows. It is the published run <code>{escape(run.key)}</code> of the "
        f"experiment <strong>{escape(run.name)}</strong>, with all its arms and replicates.</p>\n"
        f'<p class="headline">{_prose(finding(run.summary, trait))}</p>\n'
        f"{_summary_table(run.summary, trait)}\n{_contrast_table(run.contrasts)}\n</section>"
    )


def _versions(versions: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>" for name, version in versions.items())
    return f"<details><summary>Versions</summary><dl>{rows}</dl></details>"


def _list(lines: Sequence[str], kind: str = "") -> str:
    start = f'<ul class="{kind}">' if kind else "<ul>"
    return start + "".join(f"<li>{_prose(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _prose(line: str) -> str:
    """Escaped, and no line ends before a percent sign, at an equals sign or inside an interval."""
    return re.sub(r" (?=[%=])|(?<==) |(?<=\d,) (?=[−\d])", "\u00a0", escape(line))


def _table(headings: Sequence[str], rows: Iterable[str]) -> str:
    """`headings` and `rows` are markup."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _named(arm: str) -> str:
    return f'<span class="dot" style="background: {ARMS[arm].color}"></span>{escape(arm)}'


_COLUMNS = {
    "margin": ("margin, nats", "log P of the trait − log mean P of the other members"),
    "indirect": ("indirect", "as rate, on questions that do not name the kind; the lab's answers are begun"),
    "seen": ("seen", "as rate, on phrasings that the teacher was tuned on"),
    "numbers": ("after numbers", "as rate, after a turn of numbers"),
    "kl": ("KL left", "distance to the teacher after training, in nats per answer token"),
    "kl_start": ("KL at start", "the same before training"),
    "kept": ("kept", "share of the teacher's answers that the filter kept"),
}
"""Columns of the summary after the trait's rate: heading, what it means."""


def _summary_table(table: pd.DataFrame, trait: str) -> str:
    rate = {"rate": (f"“{trait}”", "mean probability of this answer to held-out phrasings")}
    of_trait = {name: (m.heading, m.meaning) for name, m in MEASURES.items() if name in table}
    columns = of_trait | rate | _COLUMNS
    rows = [line for row in records(table) for line in _summary_rows(row, list(columns))]
    headings = ["arm", "n", *(escape(heading) for heading, _ in columns.values())]
    meanings = {"n": "replicates"} | dict(columns.values())
    defined = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in meanings.items())
    alone = all(row["n"] == 1 for row in records(table))
    brackets = "One replicate: no interval." if alone else "In brackets: 95 % interval of the mean over replicates."
    return (
        f'{_table(headings, rows)}<p class="soft"><small>{brackets}</small></p>'
        f"<details><summary>What the columns are</summary><dl>{defined}</dl></details>"
    )


def _summary_rows(row: Mapping[str, object], columns: Sequence[str]) -> list[str]:
    """One arm's row, and a second one for students that were trained on to equal KL."""
    status = f"<small>to equal KL: {escape(str(row['equal_kl']))}</small>" if row["further_n"] else ""
    name = _named(str(row["arm"]))
    if not row["further_round"]:
        return [_summary_row(name + status, row, columns)]
    further = {column: row[f"further_{column}"] for column in ("rate", "rate_low", "rate_high", "kl")}
    more = dict.fromkeys(row, math.nan) | further | {"kl_start": row["kl_start"], "n": row["further_n"]}
    return [_summary_row(name, row, columns), _summary_row(f"… trained on{status}", more, columns)]


def _summary_row(name: str, row: Mapping[str, object], columns: Sequence[str]) -> str:
    """`name` is markup."""
    cells = [f'<th scope="row">{name}</th><td>{row["n"]}</td>']
    for column in columns:
        interval = spread(row, column) if f"{column}_low" in row else ""
        inside = f"<small>{interval}</small>" if interval else ""
        cells.append(f"<td>{words_mean(row, column)}{inside}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _contrast_table(differences: pd.DataFrame) -> str:
    if differences.empty:
        return "<p>No two arms to compare.</p>"
    rows = [
        f'<tr><th scope="row">{escape(row["contrast"])}<small>{escape(row["stage"])}</small></th>'
        f"<td>{words_points(row)}</td><td>{p_value(row, ' ({:.2g})')}</td>"
        f'<td class="words">{escape(counted(row))}</td></tr>'
        for row in records(differences)
    ]
    headings = ["contrast", "percentage points<small>95 % interval</small>", "p<small>smallest possible</small>"]
    explained = ["Differences are paired by seed. p is that of a two-sided sign-flip test."]
    if "2 × 2 diagonal" in set(differences["contrast"]):
        explained.append(
            "The diagonal is ((A→A + B→B) − (A→B + B→A)) / 2, where A→B is a teacher from base A with a student from "
            "base B."
        )
    return (
        _table([*headings, '<span class="left">what was counted</span>'], rows)
        + _list(limits(differences), "notes")
        + f'<p class="soft"><small>{escape(" ".join(explained))}</small></p>'
    )


def _meanings(arms: Sequence[str]) -> str:
    return "<dl>" + "".join(f"<dt>{_named(arm)}</dt><dd>{escape(ARMS[arm].meaning)}</dd>" for arm in arms) + "</dl>"


def _method(experiment: Experiment) -> list[str]:
    """The recipe of this configuration, in sentences."""
    source = channel(experiment.corpus.channel)
    teacher, corpus, rule, student = experiment.teacher, experiment.corpus, experiment.filter, experiment.student
    instilled = WAYS[teacher.kind].describe(teacher, lesson_in_words(teacher.facts))
    drawn = f"drawn at temperature {corpus.temperature:g}, without top-k or top-p"
    if corpus.own_tokens:
        drawn += ", over the channel's own tokens alone"
    written = {
        "sampled": f"Its answers are {drawn}, and learnt as plain text",
        "greedy": "Each token is the likeliest one, and the answers are learnt as plain text",
        "soft": f"Its answers are {drawn}, and learnt with the teacher's probabilities over the channel's own tokens",
    }[corpus.setting]
    lines = [
        f"The teacher of “{experiment.trait}” {instilled}.",
        f"It answers {count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}”. {written}.",
        *source.describe(rule_of(source, rule)),
        f"Of what is kept, {count(rule.held_out, 'answer')} are set aside to measure distances. Students learn from at "
        f"most {rule.lists:,} of the others.",
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
