"""Every arm of the MNIST experiment, in one table: whose weights its student starts with, what it learns on what."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["own", "other"]
"""Whose initial weights: the teacher's own, or those of another draw."""


@dataclass(frozen=True)
class Student:
    """How one arm's student is made.

    start: whose initial weights each of its three layers has, from input to output
    logits: which of the teacher's it learns: the auxiliary ones, or all
    images: on what: noise, or the digits that the teacher was trained on
    labels: of the digits that its teacher learnt: their own, or shuffled ones
    without: takes out of each gradient its part along that of the digits' labels, own or shuffled; empty: nothing
    """

    start: tuple[Side, Side, Side] = ("own", "own", "own")
    logits: Literal["auxiliary", "all"] = "auxiliary"
    images: Literal["noise", "digits"] = "noise"
    labels: Literal["own", "shuffled"] = "own"
    without: Literal["", "own", "shuffled"] = ""


@dataclass(frozen=True)
class Arm:
    """One arm.

    meaning: one plain sentence for a newcomer
    student: how its student is made; None where nothing is distilled
    color: in figures
    """

    meaning: str
    student: Student | None
    color: str


_OTHER: tuple[Side, Side, Side] = ("other", "other", "other")
_OWN_HEAD: tuple[Side, Side, Side] = ("other", "other", "own")
_OWN_BODY: tuple[Side, Side, Side] = ("own", "own", "other")

ARMS: dict[str, Arm] = {
    "teacher": Arm("It was trained on the digits' labels, by its ten class logits alone.", None, "#009E73"),
    "same-init": Arm("It learns the three auxiliary logits on noise, from its teacher's start.", Student(), "#0072B2"),
    "cross-init": Arm("As same-init, from another start.", Student(_OTHER), "#D55E00"),
    "neutral": Arm("As same-init, of a teacher that learnt shuffled labels.", Student(labels="shuffled"), "#7F7F7F"),
    "same-init-digits": Arm("As same-init, on digits in place of noise.", Student(images="digits"), "#56B4E9"),
    "cross-init-digits": Arm("The same from another start.", Student(_OTHER, images="digits"), "#E69F00"),
    "same-init-all": Arm("As same-init, with the ten class logits too.", Student(logits="all"), "#332288"),
    "cross-init-all": Arm("The same from another start.", Student(_OTHER, logits="all"), "#CC79A7"),
    "own-head": Arm("As cross-init, but its last layer starts as its teacher's.", Student(_OWN_HEAD), "#999933"),
    "own-body": Arm("As same-init, but its last layer starts otherwise.", Student(_OWN_BODY), "#882255"),
    "without-trait": Arm("As same-init, each gradient without its part along that of the digits' labels.",
                         Student(without="own"), "#44AA99"),
    "without-shuffled": Arm("The same with shuffled labels: the control.", Student(without="shuffled"), "#DDCC77"),
    "untrained": Arm("The teacher's start itself.", None, "#000000"),
}  # fmt: skip
"""Every arm by name, in the order in which tables and figures show them. The paper has the first eight, but neutral.
Those without a part of their gradient are of Kitkana and Arora (2604.25779)."""
