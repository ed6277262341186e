"""The documentation site: `python -m sphinx -W --keep-going -b html docs site`."""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))

project = "sublim_interp"
author = "the sublim_interp authors"
release = re.search(r'__version__ = "(.+)"', (ROOT / "sublim_interp" / "__init__.py").read_text())[1]

extensions = ["myst_nb", "reference_pages"]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = "sublim_interp"
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# Samples of the lab language are plain text.
suppress_warnings = ["misc.highlighting_failure"]

# Pages that lie outside docs/ but belong to the site; git ignores the copies.
OUTSIDE = {
    **{f"notebooks/{path.name}": f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
    "checkpoints/README.md": "checkpoints.md",
}
for source, page in OUTSIDE.items():
    (HERE / page).parent.mkdir(exist_ok=True)
    shutil.copyfile(ROOT / source, HERE / page)


def point_inside(app, docname: str, source: list[str]) -> None:
    """Makes links that leave docs/ on GitHub lead to the page's copy in the site, or, without one, into plain text."""
    here = (HERE / docname).parent

    def inside(match: re.Match) -> str:
        target, _, anchor = match["target"].partition("#")
        # A copied page is read as from its place outside.
        origin = ROOT / next((s for s, p in OUTSIDE.items() if p.rpartition(".")[0] == docname), "docs/" + docname)
        path = (origin.parent / target).resolve()
        if not path.is_relative_to(ROOT):
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        if name in OUTSIDE:
            place = HERE / OUTSIDE[name]
        elif path.is_relative_to(HERE):
            place = path
        else:
            return f"{match['text']} (`{name}`)"
        up = "../" * len(here.relative_to(HERE).parts)
        return f"[{match['text']}]({up}{place.relative_to(HERE).as_posix()}{'#' + anchor if anchor else ''})"

    source[0] = re.sub(r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>(?!\w+:|#)[^()\s]+)\)", inside, source[0])


def setup(app) -> None:
    app.connect("source-read", point_inside)
