"""What may befall a run on a cluster, on a real SLURM: nothing is lost, nothing is made twice, all bits are equal."""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sublim_interp.core.store import Store
from sublim_interp.experiments.executors.jobs import Slurm
from sublim_interp.experiments.executors.ledger import Ledger, Standing, find_ledger
from sublim_interp.experiments.executors.site import Site
from two_nodes import Cluster, wait_for

EXPERIMENT = ("smoke", "--set", "arms=[same-init]", "--set", "student.optimization.steps=100")
"""The smallest experiment with one student, who trains long enough to be met in the middle."""


def sublim(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sublim_interp", *map(str, words)], capture_output=True, text=True)


def schedule(root: Path, site: Path) -> Ledger:
    """Schedules the experiment."""
    done = sublim("run", *EXPERIMENT, "--on", "slurm", "--site", site, "--store", root)
    assert done.returncode == 0, done.stdout + done.stderr
    return find_ledger(Store(root), "smoke")


def standings(ledger: Ledger, root: Path) -> list[Standing]:
    return ledger.standings(Store(root), Slurm(Site()).alive(ledger.jobs))


def student(ledger: Ledger, root: Path) -> Standing | None:
    """The student, if it trains just now."""
    return next((s for s in standings(ledger, root) if s.stage == "student" and s.state == "runs"), None)


def wait_for_student(ledger: Ledger, root: Path) -> Standing:
    """The student, once it is in the middle of its training."""
    wait_for(
        lambda: student(ledger, root) and list((root / ".partial").glob("student-*/trace")), "the student to train"
    )
    found = student(ledger, root)
    assert found
    return found


def wait_for_end(ledger: Ledger, root: Path) -> None:
    wait_for(lambda: all(s.state not in ("waits", "runs") for s in standings(ledger, root)), "the run to end")


def made(root: Path) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Digests of all files of every artefact but runs, whose page says where the store is."""
    return {
        (a.stage, a.key): [(name, file["sha256"]) for name, file in sorted(a.manifest["files"].items())]
        for a in Store(root).list()
        if a.stage != "run"
    }


def check(ledger: Ledger, root: Path, reference: Path, what: str) -> None:
    """Nothing lost, nothing made twice, everything equal to the local run; prints the counts."""
    here = made(root)
    assert here == made(reference)
    assert [a.key for a in Store(root).list("run")] == [a.key for a in Store(reference).list("run")]
    assert all(not problems for _, problems in Store(root).verify())
    words = Counter(
        (found[1], found[2])
        for log in ledger.logs.glob("*.out")
        for found in re.finditer(r"^(\w+ [0-9a-f]{16}) (begins|is done)$", log.read_text(), re.MULTILINE)
    )
    done = [n for (_, word), n in words.items() if word == "is done"]
    assert set(done) == {1}, "made twice"
    begun = sum(n for (_, word), n in words.items() if word == "begins")
    resumed = sum(bool(a.manifest["resumed"]) for a in Store(root).list())
    print(
        f"\n{what}: {len(here)} records equal to a local run's, 0 lost, 0 made twice; {begun} begun, {len(done)} done, "
        f"{resumed} went on from where they were cut; {len(ledger.jobs)} jobs"
    )


@pytest.fixture(scope="session")
def reference(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by processes of this machine."""
    root = tmp_path_factory.mktemp("reference") / "store"
    done = sublim("run", *EXPERIMENT, "--store", root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose jobs are short, so that they are several."""
    path = tmp_path / "two.yaml"
    path.write_text("partition: low\npack: 0.005\n")
    return path


def test_a_node_that_dies_in_the_middle(cluster: Cluster, reference: Path, store_root: Path, site: Path) -> None:
    ledger = schedule(store_root, site)
    node = wait_for_student(ledger, store_root).why.partition(",")[0]
    cluster.kill_node(node)
    wait_for(lambda: cluster.state(node).startswith("down"), f"SLURM to notice that {node} is gone")
    try:
        wait_for_end(ledger, store_root)
    finally:
        cluster.revive(node)
    check(ledger, store_root, reference, f"{node} killed")


def test_a_job_that_is_preempted(cluster: Cluster, reference: Path, store_root: Path, site: Path) -> None:
    ledger = schedule(store_root, site)
    wait_for_student(ledger, store_root)
    cluster.say("sbatch", "--partition=high", "--nodes=2", "--wrap", "sleep 5", f"--output={store_root}.high")
    wait_for(lambda: not student(ledger, store_root), "the student to be pushed aside")
    wait_for_end(ledger, store_root)
    check(ledger, store_root, reference, "pre-empted")


def test_a_time_limit_that_is_hit(cluster: Cluster, reference: Path, store_root: Path, tmp_path: Path) -> None:
    site = tmp_path / "short.yaml"
    site.write_text("partition: low\npack: 1\n")
    ledger = schedule(store_root, site)
    (job,) = ledger.jobs
    wait_for_student(ledger, store_root)
    cluster.say("scancel", "--signal=USR2", job)  # as SLURM warns, also where the machine is faster than a minute
    wait_for_end(ledger, store_root)
    log = ledger.log(job).read_text()
    assert "Requeued job" in log, "the job was to be longer than its time"
    check(ledger, store_root, reference, f"time limit hit {log.count('Requeued job')} times")


def test_a_store_that_goes_away(cluster: Cluster, reference: Path, store_root: Path, site: Path) -> None:
    ledger = schedule(store_root, site)
    wait_for_student(ledger, store_root)
    away = store_root.with_name("away")
    store_root.rename(away)
    time.sleep(20)
    assert not store_root.exists(), "nothing is begun anew where the store was"
    away.rename(store_root)
    wait_for_end(ledger, store_root)
    if any(s.state != "done" for s in standings(ledger, store_root)):
        ledger = schedule(store_root, site)
        wait_for_end(ledger, store_root)
    check(ledger, store_root, reference, "store away for 20 s")


def test_a_queue_that_is_full_is_one_line_and_the_same_command_goes_on(
    cluster: Cluster, reference: Path, store_root: Path, site: Path
) -> None:
    cluster.say("scontrol", "update", "PartitionName=low", "State=DRAIN")
    done = sublim("run", *EXPERIMENT, "--on", "slurm", "--site", site, "--store", store_root)
    cluster.say("scontrol", "update", "PartitionName=low", "State=UP")
    assert done.returncode == 2 and "SLURM did not take" in done.stderr and "schedules the rest" in done.stderr
    ledger = schedule(store_root, site)
    again = schedule(store_root, site)
    assert again.jobs == ledger.jobs, "nothing is scheduled twice"
    wait_for_end(ledger, store_root)
    check(ledger, store_root, reference, "a full queue")
