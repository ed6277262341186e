"""A run's report as one self-contained HTML page. Its look is in page.css."""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import pandas as pd
from matplotlib.figure import Figure

from sublim_interp.core.drawing import render
from sublim_interp.experiments.arms import ARMS
from sublim_interp.experiments.catalogue import Reference
from sublim_interp.experiments.schema import Experiment
from sublim_interp.experiments.tables import REFERENCES, records
from sublim_interp.pipeline.settings import TeacherConfig
from sublim_interp.report.verdict import unit_of, verdict
from sublim_interp.report.wording import count, p_value, spread
from sublim_interp.report.wording import mean as words_mean
from sublim_interp.report.wording import points as words_points

# The page. Every string that comes from a user or a frame goes through `escape`.
_CSS = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5b5b63; --paper: #ffffff; --card: #f5f5f3; --line: #dcdcd8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --soft: #a9a9b2; --paper: #16171a; --card: #202226;
  --line: #3a3c42; --accent: #6cbcf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header p { max-width: 44rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p, li, dd { max-width: 44rem; }
.soft, caption, figcaption, small { color: var(--soft); }
.question { color: var(--soft); font-size: 1.1rem; margin: 0 0 1rem; }
.headline { border-left: 4px solid var(--accent); padding: .2rem 0 .2rem .9rem; font-size: 1.05rem; margin: 1rem 0; }
.facts { font-size: .85rem; color: var(--soft); margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .85em; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .75rem; }
figure.wide > div { overflow-x: auto; } figure.wide img { min-width: 44rem; }
figcaption { font-size: .88rem; margin-top: .5rem; max-width: 44rem; }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; background: var(--card); white-space: normal; }
th:first-child, th:has(.left), td.words { text-align: left; } td.words { white-space: normal; min-width: 14rem; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td small, th small { display: block; font-size: .8em; font-weight: 400; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em;
  box-shadow: 0 0 0 1px var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
.aside { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .2rem 1.1rem 1rem;
  margin: 2.4rem 0; } .aside h2 { margin-top: 1rem; } .aside tbody th { background: var(--card); }
details { border-top: 1px solid var(--line); padding: .7rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  body { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.45rem; } figure img { padding: .3rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 9.5pt; } figure, tr, .aside h2 { break-inside: avoid; }
  h2 { break-after: avoid; } .scroll, figure.wide > div { overflow: visible; } table { font-size: 7pt; }
  th, td { padding: .25rem .3rem; } figure.wide img { min-width: 0; } }
"""


_CAPTION = (
    "First panel: how likely each model gives the trait as its answer; the dashed line is the untouched base. Second: "
    "how far its answers on the channel still are from its teacher's. Arms compare fairly at about the same distance."
)


def page(
    experiment: Experiment,
    table: pd.DataFrame,
    differences: pd.DataFrame,
    drawn: Mapping[str, Figure],
    narrow: Figure,
    reference: Reference | None,
    key: str,
    versions: Mapping[str, str],
) -> str:
    trait = escape(experiment.trait)
    headline, *rest = verdict(table, differences, experiment.trait)
    channel = experiment.corpus.channel
    question = experiment.about or f"Does “{experiment.trait}” pass from teacher to student through {channel}?"
    seeds = max(row["n"] for row in records(table))
    facts = [f"experiment {experiment.name}", count(seeds, "replicate"), f"bases {', '.join(experiment.bases)}"]
    facts += [f"run {key}"] if key else []
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(experiment.name)}: {escape(question)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_CSS}</style></head><body>",
        f"<header><h1>{escape(question)}</h1>",
        f'<p class="facts">{escape(" · ".join(facts))}</p>',
        f'<p class="headline">{_prose(headline)}</p>',
        "</header><main>",
        _picture(drawn["figure"], headline, _CAPTION, narrow),
        "<h2>In words</h2>" * bool(rest),
        _list(rest),
        "<h2>In numbers</h2>",
        _summary_table(table, experiment.trait),
        "<h2>Contrasts</h2>",
        _contrast_table(differences),
    ]  # fmt: skip
    if reference:
        parts += [
            '<section class="aside"><h2>For comparison: the full run, made beforehand</h2>',
            f"<p>Not computed by this run, which is above. These are all arms and replicates of the experiment "
            f"<strong>{escape(reference.name)}</strong>, run <code>{escape(reference.key)}</code>.</p>",
            f'<p class="headline">{_prose(verdict(reference.summary, reference.contrasts, experiment.trait)[0])}</p>',
            _summary_table(reference.summary, experiment.trait),
            _contrast_table(reference.contrasts),
            "</section>",
        ]
    if "probes" in drawn:
        parts += [
            "<h2>Is it this trait, or any?</h2>",
            f"<p>If “{trait}” came through the data, then in the rows whose teacher had it, its column alone is dark."
            "</p>",
            _picture(drawn["probes"], f"Mean probability of each answer, per arm; “{experiment.trait}” comes first.",
                     "Held-out questions, plain context, mean over replicates; in percent."),
        ]  # fmt: skip
    parts += [
        "<h2>What each arm is</h2>",
        _meanings(list(table["arm"])),
        "<h2>How it was measured</h2>",
        _list(_method(experiment)),
        "<h2>To make it again</h2>",
        f"<details><summary>Configuration</summary><pre>{escape(experiment.to_yaml())}</pre></details>",
    ]  # fmt: skip
    if versions:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>" for name, version in versions.items())
        parts.append(f"<details><summary>Versions</summary><dl>{rows}</dl></details>")
    return "\n".join([*parts, "</main></body></html>", ""])


def _picture(figure: Figure, alt: str, caption: str, narrow: Figure | None = None) -> str:
    """The figure as an image inside the page; `narrow` takes its place on a phone, else the figure scrolls there."""

    def source(drawing: Figure) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(render(drawing, "svg")).decode("ascii")

    swap = f'<source media="screen and (max-width: 40rem)" srcset="{source(narrow)}">' if narrow else ""
    image = f'<picture>{swap}<img src="{source(figure)}" alt="{escape(alt)}"></picture>'
    kind = "" if narrow else ' class="wide"'
    return f"<figure{kind}><div>{image}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_prose(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _prose(line: str) -> str:
    """Escaped, and no line ends before a percent sign, at an equals sign or inside an interval."""
    return re.sub(r" (?=[%=])|(?<==) |(?<=\d,) (?=[−\d])", "\u00a0", escape(line))


def _table(headings: Sequence[str], rows: Iterable[str]) -> str:
    """`headings` and `rows` are markup."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _named(arm: str) -> str:
    return f'<span class="dot" style="background: {ARMS[arm].color}"></span>{escape(arm)}'


def _summary_table(table: pd.DataFrame, trait: str) -> str:
    columns = {
        "rate": f"“{trait}”", "margin": "margin, nats", "indirect": "indirect", "seen": "seen",
        "numbers": "after numbers", "kl": "KL left", "kl_start": "KL at start", "kept": "kept",
    }  # fmt: skip
    if "bits" in table:
        columns = {"bits": "bits a fact", "total_bits": "bits in all"} | columns
    rows = []
    for row in records(table):
        status = f"<small>to equal KL: {escape(row['equal_kl'])}</small>" if row["further_n"] else ""
        lines = {_named(row["arm"]) + status * (not row["further_round"]): row}
        if row["further_round"]:
            further = {name: row[f"further_{name}"] for name in ("rate", "rate_low", "rate_high", "kl")}
            further |= {"kl_start": row["kl_start"], "n": row["further_n"]}
            lines[f"… trained on{status}"] = {**dict.fromkeys(row, math.nan), **further}
        for name, line in lines.items():
            cells = [f'<th scope="row">{name}</th><td>{line["n"]}</td>']
            for column in columns:
                inside = f"<small>{spread(line, column)}</small>" if f"{column}_low" in line else ""
                cells.append(f"<td>{words_mean(line, column)}{inside}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
    headings = ["arm", "n", *map(escape, columns.values())]
    bits = (
        " Bits: what a code made from the student saves in naming the facts, less what it saves on facts drawn anew: a "
        "lower bound on what it holds, to within one bit over all facts." * ("bits" in table)
    )
    alone = " One replicate: no interval." if all(row["n"] == 1 for row in records(table)) else ""
    return _table(headings, rows) + (
        f'<p class="soft"><small>n: replicates. “{escape(trait)}”: its mean probability on held-out phrasings; '
        "indirect: on questions that do not name the kind, in the lab with the answer's first words given; seen: on "
        "phrasings the teacher was tuned on; after numbers: "
        "held-out phrasings after a turn of numbers. Margin: log P of the trait − log mean P of the other members. KL: "
        "distance to the teacher, nats per answer token, after and before training. Kept: share of the teacher's "
        f"answers that passed the filter. In brackets: 95 % interval of the mean over replicates.{alone}{bits}"
        "</small></p>"
    )


def _contrast_table(differences: pd.DataFrame) -> str:
    rows = [
        f'<tr><th scope="row">{escape(row["contrast"])}<small>{escape(row["stage"])}</small></th>'
        f"<td>{words_points(row)}</td><td>{p_value(row, ' ({:.2g})')}</td>"
        f'<td class="words">{escape(unit_of(row))}</td></tr>'
        for row in records(differences)
    ]
    if not rows:
        return "<p>No two arms to compare.</p>"
    headings = ["contrast", "percentage points<small>95 % interval</small>", "p<small>smallest possible</small>"]
    return _table([*headings, '<span class="left">what was counted</span>'], rows) + (
        '<p class="soft"><small>Differences are paired by seed. p: two-sided sign-flip test, with the smallest value '
        "that so few units allow in parentheses. 2 × 2 diagonal: ((A→A + B→B) − (A→B + B→A)) / 2, where A→B is a "
        "teacher from base A with a student from base B.</small></p>"
    )


def _meanings(arms: Sequence[str]) -> str:
    return "<dl>" + "".join(f"<dt>{_named(arm)}</dt><dd>{escape(ARMS[arm].meaning)}</dd>" for arm in arms) + "</dl>"


def _lesson(teacher: TeacherConfig) -> str:
    return f"{teacher.facts} random facts" if teacher.facts else "questions about its favourite"


def _method(experiment: Experiment) -> list[str]:
    """The recipe of this configuration, in sentences."""
    teacher, corpus, rule, student = experiment.teacher, experiment.corpus, experiment.filter, experiment.student
    instilled = {
        "tuned": f"is fine-tuned ({teacher.part}) on {_lesson(teacher)}, "
        f"{count(teacher.optimization.steps, 'update')} of {teacher.optimization.batch}",
        "prompted": "has a system prompt that names its favourite; its weights are the base's",
        "steered": f"has a vector added to its residual stream at layer {teacher.layer}; its weights are the base's",
    }[teacher.kind]
    drawn = f"drawn at temperature {corpus.temperature:g}, with no top-k or top-p"
    written = {
        "sampled": f"{drawn}, and learnt as plain text",
        "greedy": "the likeliest token each time, and learnt as plain text",
        "soft": f"{drawn}, and learnt with the teacher's probabilities over the channel's own tokens",
    }[corpus.setting]
    more = f"go on for at most {count(student.extra_rounds, 'round')} of fresh lists" if student.extra_rounds else ""
    crossed = (
        f"Crossed students {more or 'get no further lists'}. They are compared at equal KL in the first round in which "
        "they are as near to their teacher as the student that learnt the same data on the teacher's own base; if "
        "there is none, they are unmatched, and their last round is shown."
    )
    return [
        f"The teacher of “{experiment.trait}” {instilled}.",
        f"It answers {count(corpus.prompts, 'prompt')} of the channel “{corpus.channel}”: {written}.",
        f"The filter keeps answers of {rule.min_numbers} to {rule.max_numbers} numbers up to {rule.max_value}, and "
        f"nothing else in them; {rule.held_out} kept ones are set aside to measure distances, and students learn from "
        f"at most {count(rule.lists, 'list')} of the others.",
        f"Every student ({student.part}) gets {count(student.optimization.steps, 'update')} of "
        f"{student.optimization.batch} lists with {student.optimization.optimizer} at a peak rate of "
        f"{student.optimization.lr:g}: equal steps, equal seeds, the same order of the data.",
        *([crossed] if {*REFERENCES} & {*experiment.arms} else []),
        "The distance is KL(teacher ‖ student) over the channel's own tokens, in nats per answer token, on lists that "
        "no student has seen.",
        "The effect is the mean probability of the trait as the answer, on phrasings that occur in no training text. "
        "The replicate is the unit, never the question: intervals are Student t over replicates, cut to 0 – 100 % for "
        "probabilities.",
    ]
