"""A paper's numbers, tables and figures for those who write LaTeX: files that a document of their own reads."""

import re
import unicodedata
from collections.abc import Iterator, Mapping

from sublim_interp.paper.results import Result

_ESCAPED = {character: f"\\{character}" for character in "%&#_${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "−": "$-$", "–": "--", "×": r"$\times$", "·": r"$\cdot$",
    "→": r"$\to$",
    "≤": r"$\le$", "≥": r"$\ge$", "<": "$<$", ">": "$>$", "|": r"$\mid$", "√": r"$\surd$", "“": "``", "”": "''",
    "‖": r"$\parallel$",
}  # fmt: skip


def as_latex(results: Mapping[str, Result]) -> dict[str, str]:
    r"""Files of LaTeX, UTF-8, by name.

    numbers.tex: every number, as in `\input{numbers}` and then `\sublim{owl/same-init/margin-nats}`
    tables/NAME.tex: each table, which goes on to the next page where it must
    skeleton.tex: a document that shows all figures and tables; `pdflatex skeleton` twice
    """
    tables = {f"tables/{name}.tex": _table(one) for name, one in results.items() if one.rows}
    return {"numbers.tex": _numbers(results), **tables, "skeleton.tex": _skeleton(results)}


def escaped(text: str) -> str:
    """Text as LaTeX sets it; a character that LaTeX's base cannot set is a question mark."""
    return "".join(_ESCAPED.get(character) or _plain(character) for character in text)


_LATIN = 0x180
"""Characters below this are set as they are."""


def _plain(character: str) -> str:
    if ord(character) < _LATIN:
        return "" if character == "`" else character
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    if greek and greek[2] in _GREEK[greek[1]]:
        return f"$\\{greek[2].lower() if greek[1] == 'SMALL' else greek[2].capitalize()}$"
    return "?"


_GREEK = {
    "SMALL": re.findall(
        r"\w+", "ALPHA BETA GAMMA DELTA EPSILON ZETA ETA THETA IOTA KAPPA MU NU XI PI RHO SIGMA TAU PHI CHI PSI OMEGA"
    ),
    "CAPITAL": re.findall(r"\w+", "GAMMA DELTA THETA XI PI SIGMA PHI PSI OMEGA"),
}
"""Letters that LaTeX has a command for."""


def _numbers(results: Mapping[str, Result]) -> str:
    lines = [
        "% Every number. Usage: \\input{numbers} and then \\sublim{owl/same-init/margin-nats}",
        r"\makeatletter",
        r"\newcommand\sublim[1]{\@ifundefined{sublim@#1}{\PackageError{sublim}{no number #1}{}}"
        r"{\@nameuse{sublim@#1}}}",
    ]
    for one in results.values():
        lines.append(f"% {one.made}, {one.key}")
        lines += [
            rf"\@namedef{{sublim@{one.name}/{number}}}{{{escaped(said)}}}" for number, said in one.numbers.items()
        ]
    return "\n".join([*lines, r"\makeatother", ""])


def _table(one: Result) -> str:
    columns = "l" * one.labels + "r" * (len(one.columns) - one.labels)
    rows = [" & ".join(map(escaped, row)) + r" \\" for row in one.rows]
    lines = [
        f"% {one.made}, {one.key}",
        rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{{_caption(one, one.about)}}}\label{{tab:{one.name}}}\\\hline",
        " & ".join(rf"\textbf{{{escaped(column)}}}" for column in one.columns) + r" \\\hline\endhead",
        *rows,
        r"\hline",
        r"\end{longtable}",
    ]
    return "\n".join([*lines, *(line for said in one.lines for line in ("", escaped(said))), ""])


def _caption(one: Result, said: str) -> str:
    return rf"{escaped(said)} Made by \texttt{{{escaped(one.made)}}}, key \texttt{{{one.key[:16]}}}."


def _skeleton(results: Mapping[str, Result]) -> str:
    return "\n".join(
        [
            "% Shows every figure and table: keep what you need. Run pdflatex twice.",
            r"\documentclass{article}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage{graphicx,longtable}",
            r"\usepackage[a4paper,margin=2cm]{geometry}",
            r"\setlength\tabcolsep{3pt}",
            r"\input{numbers}",
            r"\title{Your title}",
            r"\author{You}",
            r"\begin{document}",
            r"\maketitle",
            *_quoted(results),
            *(line for one in results.values() for line in _section(one)),
            r"\end{document}",
            "",
        ]
    )


def _quoted(results: Mapping[str, Result]) -> Iterator[str]:
    """A first sentence that quotes a number."""
    for one in results.values():
        for name, said in one.numbers.items():
            if not said.startswith("–"):
                yield rf"The number \texttt{{{escaped(f'{one.name}/{name}')}}} is \sublim{{{one.name}/{name}}}."
                return


def _section(one: Result) -> Iterator[str]:
    yield ""
    yield rf"\section{{{escaped(one.question)}}}"
    if one.figure:
        yield r"\begin{figure}[htbp]\centering"
        yield rf"\includegraphics[width=\linewidth,height=.45\textheight,keepaspectratio]{{figures/{one.name}.pdf}}"
        yield rf"\caption{{{_caption(one, one.question)}}}\label{{fig:{one.name}}}"
        yield r"\end{figure}"
    if one.rows:
        yield rf"{{\tiny\input{{tables/{one.name}}}}}"
    yield r"\clearpage"
