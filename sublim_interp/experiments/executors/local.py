"""The executor that works by itself: worker processes of this machine, of one thread each."""

from collections.abc import Sequence

from sublim_interp.core.cards import Card, cards_here
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Task, Watch, run_tasks
from sublim_interp.experiments.executors.pieces import Work, peaks_of
from sublim_interp.experiments.executors.protocol import Executor


class Local(Executor):
    """Each worker has one of the GPUs where the device is one, and shares it while the measured memory fits."""

    detached = False

    def cards(self) -> Sequence[Card]:
        """The GPUs that workers share; none where models are on the CPU."""
        return cards_here()

    def start(
        self, work: Work, store: Store, watch: Watch, skip: tuple[type[Exception], ...] = ()
    ) -> dict[str, Exception]:
        tasks = [Task(p.key, p.function, p.arguments, p.inputs, p.needs.shape) for p in work.pieces]
        return run_tasks(tasks, self.processes, watch, skip, self.cards(), peaks_of(store))
