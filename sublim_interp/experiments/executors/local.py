"""The executor that works by itself: worker processes of this machine, of one thread each."""

from sublim_interp.core.device import visible_gpus
from sublim_interp.core.store import Store
from sublim_interp.core.workers import Task, Watch, run_tasks
from sublim_interp.experiments.executors.pieces import Work
from sublim_interp.experiments.executors.protocol import Executor


class Local(Executor):
    """Each worker has one of the GPUs where the device is one; workers take turns where they are more."""

    detached = False

    def start(
        self, work: Work, store: Store, watch: Watch, skip: tuple[type[Exception], ...] = ()
    ) -> dict[str, Exception]:
        tasks = [Task(piece.key, piece.function, piece.arguments, piece.inputs) for piece in work.pieces]
        return run_tasks(tasks, self.processes, watch, skip, visible_gpus())
