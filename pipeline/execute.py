"""Running a notebook without a person, by papermill's API: a hung or dead kernel ends, and is tried once more.

The Snakefile calls this file as a script, so that no name of a recipe, a card or a file passes through a shell.
"""

import getpass
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.modules.setdefault("rfc3987_syntax", None)  # of jsonschema, for URIs that no notebook has: it takes 1.3 s to import
import nbformat
import papermill
import psutil
from filelock import FileLock, Timeout
from nbclient.exceptions import CellTimeoutError

INSERTED = {"injected-parameters", "papermill-error-cell-tag"}  # tags of cells that papermill adds


def execute(notebook: str | Path, output: str | Path, parameters: dict[str, Any], cell_timeout: int = 3600) -> None:
    """Runs a notebook into `output`; no cell may take longer than `cell_timeout` seconds. RuntimeError naming notebook,
    cell and recipe where the kernel hung or died twice; papermill's own error where a cell raised. The kernel is gone
    afterwards, whatever happened."""
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # the port race at a kernel's start, harmless
    options = {"kernel_name": "python3", "progress_bar": False, "start_timeout": 180, "execution_timeout": cell_timeout}
    recipe = (parameters.get("changes") or {}).get("name") or parameters.get("recipe", "the default recipe")
    for attempt in (1, 2):
        try:
            papermill.execute_notebook(notebook, output, parameters, **options)
            return
        except CellTimeoutError:
            what = f"took longer than cell_timeout, {cell_timeout} s"
        except RuntimeError as error:  # what jupyter_client raises of kernels that do not start
            what = f"lost its kernel ({error})"
        said = f"{Path(notebook).name}, {last_started(output)}, recipe {recipe}: {what}"
        print(f"{said} (attempt {attempt} of 2)", file=sys.stderr, flush=True)
    raise RuntimeError(f"{said}, 2 times; the notebook as far as it came: {output}")


def last_started(output: str | Path) -> str:
    """The cell of an executed notebook that was begun last, counted from 1 on."""
    cells = nbformat.read(output, as_version=4).cells if Path(output).is_file() else []
    cells = [cell for cell in cells if not INSERTED & set(cell.metadata.get("tags", []))]
    begun = [i for i, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return f"cell {begun[-1]}" if begun else "its start"


def take_gpu(count: int) -> FileLock | None:
    """Makes one of the visible GPUs (`count`, where CUDA_VISIBLE_DEVICES does not say) this process' own, waiting for a
    free one, as long as the lock is kept. None where there is none."""
    names = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")))
    while names:
        for name in names:
            lock = FileLock(Path(tempfile.gettempdir()) / f"in-model-{getpass.getuser()}-gpu-{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return lock
        time.sleep(1)
    return None


def end_with(pid: int) -> None:
    """Ends this process, and so its kernel, within seconds after the process `pid`, the pipeline's."""

    def watch() -> None:
        while psutil.pid_exists(pid):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(job: Any) -> None:
    """A job of the Snakefile: its notebook is an input, what it executes to is its log."""
    end_with(job.config["pid"])
    _gpu = take_gpu(job.config["gpus"]) if job.resources.get("gpu") else None  # kept until this process ends
    try:
        execute(job.input.notebook, job.log[0], job.params.parameters, job.params.cell_timeout)
    except papermill.PapermillExecutionError as error:
        where = f"{Path(job.input.notebook).name}, {last_started(job.log[0])}, recipe {job.wildcards.get('name', '')}"
        sys.exit(f"{where}: {error.ename}: {error.evalue}; the notebook: {job.log[0]}")
    except RuntimeError as error:
        sys.exit(str(error))


if "snakemake" in globals():
    main(globals()["snakemake"])
