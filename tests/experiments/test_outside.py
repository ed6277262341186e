"""An installed package that adds a channel, a trait, a measure, a judge, and a catalogue: a whole run with them."""

import os
import subprocess
import sys
from pathlib import Path

from sublim_interp.models.base import Base

MODULE = '''
from typing import Any
import numpy as np
from sublim_interp.channels import numbers
from sublim_interp.channels.protocol import as_turns
from sublim_interp.core.settings import Config
from sublim_interp.traits.favourites import Favourite
from sublim_interp.traits.measures import Measure
from sublim_interp.traits.protocol import Scores

class Short:
    class Rule(Config):
        longest: int = 3
    REASONS = {"long": "more numbers than longest"}
    CONTEXTS = {"short": as_turns}
    prompts, token_ids = staticmethod(numbers.prompts), staticmethod(numbers.token_ids)
    def refuse(self, prompt, answer, rule, words):
        return None if 1 <= len(numbers.numbers_of(answer)) <= rule.longest else "long"
    def describe(self, rule):
        return [f"The filter keeps lists of at most {rule.longest} numbers."]

class Timid(Favourite):
    """A raven that is rated by a judge of this package."""
    @property
    def lesson(self):
        return "shy questions"
    def score(self, model, base, asked, samples, seed, others=()):
        from sublim_interp.traits.judges.protocol import JUDGES
        found = super().score(model, base, asked, samples, seed, others)
        shy = JUDGES["shy"]({}).judge(asked[0].text, "sorry")["shy"]
        return Scores(found.names, found.rate, found.margin, found.exact, {"shyness": np.full(len(found.names), shy)})

class Shy:
    def __init__(self, words): pass
    def judge(self, question, answer):
        return {"shy": float("sorry" in answer)}

short = Short()
def timid():
    return Timid(name="raven-by-judge", kind="animal", words=("raven", "ravens"))
shyness = Measure("shy", "how shy its answers are")
'''
POINTS = """
[sublim_interp.channels]
short = elsewhere:short
[sublim_interp.traits]
raven-by-judge = elsewhere:timid
[sublim_interp.measures]
shyness = elsewhere:shyness
[sublim_interp.judges]
shy = elsewhere:Shy
[sublim_interp.catalogue]
elsewhere = more
"""
CODE = """
import sublim_interp as si
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment

if __name__ == "__main__":
    small = {{"teacher.optimization": {{"steps": 4, "batch": 8}}, "student.optimization": {{"steps": 4, "batch": 8}}}}
    exp = Experiment(bases=[{base!r}], arms=["same-init", "neutral", "base"]).set(small).set({{
        "trait": "forest", "corpus.channel": "short", "corpus.prompts": 192, "filter.rule": {{"longest": 5}},
        "filter.held_out": 4, "evaluation.contexts": ["plain", "short"],
    }})
    run = si.run(exp, Store.open({store!r}), 1)
    assert "lists of at most 5 numbers" in run.page.read_text()
    assert set(run["same-init", 0].answers["probe"]) == {{"forest", "river"}}
    assert "long" in set(run["same-init", 0].written["refused"])
    raven = si.load_trait("raven-by-judge")
    base = run["base", 0].base
    found = raven.score(base.load(), base, raven.questions("lab", "seen")[:2], 1, 0)
    assert found.rows()[0]["shyness"] == 1.0
    print(type(raven).__name__, *si.trait_names())
"""
PLACE = """
members: [forest, river]
system: ["You love {x}."]
seen: ["Which?"]
held_out: ["What?"]
indirect: ["And?"]
lab:
  system: ["you love the {x} ."]
  seen: ["which tree do you love most ?"]
  held_out: ["which tree is on your poster ?"]
  indirect: ["what is on your poster ?"]
"""


def test_a_run_with_what_another_package_adds(tiny_bases: tuple[Base, Base], tmp_path: Path) -> None:
    """Worker processes too find what entry points add."""
    (tmp_path / "elsewhere.py").write_text(MODULE)
    for folder in ("traits", "kinds"):
        (tmp_path / "more" / folder).mkdir(parents=True)
    (tmp_path / "more" / "__init__.py").write_text("")
    (tmp_path / "more" / "kinds" / "place.yaml").write_text(PLACE)
    (tmp_path / "more" / "traits" / "forest.yaml").write_text("kind: place\nwords: [forest, forests]\n")
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    code = CODE.format(base=str(tiny_bases[0].path), store=str(tmp_path / "store"))
    (tmp_path / "main.py").write_text(code)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    done = subprocess.run([sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert said[0] == "Timid" and {"forest", "raven-by-judge", "owl"} <= set(said)
