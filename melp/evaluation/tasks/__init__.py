"""The tasks, each a module with `run(settings, runtime) -> Results`, and how a command or a script runs one."""

import contextlib
import importlib
from pathlib import Path

from accelerate.utils import broadcast_object_list

from melp.evaluation.models import Runtime
from melp.evaluation.output import USUAL, check_output
from melp.evaluation.results import Results
from melp.evaluation.settings import Settings
from melp.files import FolderLock


def run(settings: Settings, runtime: Runtime | None = None) -> Results:
    """Runs the task that the settings belong to, without printing or writing anything.

    Raises:
        ValueError: naming the model, folder, split or label that does not fit.
    """
    task = importlib.import_module(f"{__name__}.{settings.task.replace('-', '_')}")
    return task.run(settings, runtime or Runtime.detect(settings))


def evaluate(settings: Settings, alone: bool = False) -> Results:
    """Runs a task, prints its tables and writes what `output` asks for, in the place of an earlier evaluation's files.

    Args:
        alone: this process works by itself, though `accelerate launch` may have started others.

    Raises:
        ValueError: as `run`; when another process writes to `output`, or it holds files of another kind.
    """
    runtime = Runtime.detect(settings, alone)
    with contextlib.ExitStack() as stack:
        if settings.output:  # one that cannot be written is known before the work, not after it
            _on_main_process(runtime, lambda: _take(settings, stack))
        results = run(settings, runtime)
        if runtime.rank > 0:
            return results
        print("\n" + results.markdown())
        if settings.output:
            print(results.write(settings.output))
    print(f"Next: {results.next}")
    return results


def _take(settings: Settings, stack: contextlib.ExitStack):
    output = Path(settings.output)
    stack.enter_context(FolderLock(output, f"evaluate.py {settings.task}"))
    check_output(output, (*USUAL, *settings.also_writes))


def _on_main_process(runtime: Runtime, action):
    """Has the main process act; its ValueError is everyone's, so that none waits for it."""
    error = None
    if runtime.rank == 0:
        try:
            action()
        except (ValueError, OSError) as raised:
            error = raised
    if runtime.world > 1:
        error = broadcast_object_list([error])[0]
    if error is not None:
        raise error
