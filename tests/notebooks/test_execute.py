"""Notebooks without a person: limits, retries, GPUs; and what is left behind."""

import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import papermill
import psutil
import pytest
import torch

from lib import PROJECT, viewer
from pipeline import execute
from pipeline.execute import take_gpu

KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}


@pytest.fixture
def notebook(tmp_path):
    def make(*cells):
        made = nbformat.v4.new_notebook(metadata=KERNEL)
        parameters = nbformat.v4.new_code_cell('recipe = ""\nchanges = {}', metadata={"tags": ["parameters"]})
        made.cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
        nbformat.write(made, tmp_path / "made.ipynb")
        return tmp_path / "made.ipynb", tmp_path / "executed.ipynb", {"recipe": "some.yaml", "changes": {}}

    return make


NOTE = "import os, subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
NOTE += "print(os.getpid(), child.pid, file=open({!r}, 'a'))"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("import time\ntime.sleep(600)", "took longer than cell_timeout, 2 s, 2 times"),
        ("child.kill()\nos._exit(1)", r"lost its kernel \(Kernel died\), 2 times"),
    ],
    ids=["hangs", "dies"],
)
def test_a_cell_that_hangs_or_dies_is_tried_twice_and_leaves_no_process(notebook, tmp_path, cell, said):
    given = notebook(NOTE.format(str(tmp_path / "pids")), cell)
    with pytest.raises(RuntimeError, match=rf"made.ipynb, cell 3, recipe some.yaml: {said}; .*executed.ipynb"):
        execute.execute(*given, cell_timeout=2)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4
    for _ in range(100):
        left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        time.sleep(0.1 * bool(left))
    assert not left


def test_a_kernel_that_does_not_start_is_tried_twice(notebook, monkeypatch):
    tries = []

    def fail(*given, **options):
        tries.append(1)
        raise RuntimeError("Kernel didn't respond in 180 seconds")

    monkeypatch.setattr("jupyter_client.asynchronous.AsyncKernelClient.wait_for_ready", fail)
    with pytest.raises(RuntimeError, match=r"made.ipynb, its start, recipe some.yaml: lost its kernel \(Kernel didn't"):
        execute.execute(*notebook("1"))
    assert len(tries) == 2


def test_what_works_the_second_time_has_worked(notebook, tmp_path):
    flag = tmp_path / "flag"
    execute.execute(*notebook(f"import os, pathlib\nflag = pathlib.Path({str(flag)!r})",
                              "if not flag.exists():\n    flag.touch()\n    os._exit(1)"))  # fmt: skip
    assert nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells[-1].execution_count


def test_an_error_in_a_cell_is_no_reason_to_try_again(notebook, tmp_path):
    given = notebook(f"open({str(tmp_path / 'tries')!r}, 'a').write('x')", "1 / 0")
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        execute.execute(*given)
    assert (tmp_path / "tries").read_text() == "x"


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """The folder of the locks of GPUs, of this test alone."""
    monkeypatch.setattr(execute.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_each_gpu_has_one_job(monkeypatch, locks):
    def take():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        return take_gpu(8), os.environ["CUDA_VISIBLE_DEVICES"]

    (_three, first), (five, second) = take(), take()
    assert (first, second) == ("3", "5")
    monkeypatch.setattr(execute.time, "sleep", lambda _: five.release())  # while it waits, a job ends
    lock, name = take()
    assert name == "5"
    lock.release()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    take_gpu(1).release()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert take_gpu(8) is None


def test_a_gpu_is_free_again_when_its_process_was_killed(locks, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = f"import tempfile, time; tempfile.tempdir = {str(locks)!r}\n"
    code += "from pipeline.execute import take_gpu; lock = take_gpu(1); print('taken', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=PROJECT)
    assert holder.stdout.readline() == b"taken\n"
    holder.kill()
    holder.wait()
    take_gpu(1).release()


def test_a_job_ends_with_its_pipeline():
    code = "import sys, time; from pipeline.execute import end_with; end_with(int(sys.argv[1])); print(1, flush=True)"
    pipeline = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    command = [sys.executable, "-c", code + "; time.sleep(600)", str(pipeline.pid)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT)
    job.stdout.readline()
    assert job.poll() is None
    pipeline.kill()
    pipeline.wait()
    assert job.wait(timeout=10) == 1


def test_the_viewer_draws_a_picture_where_nobody_watches_and_sliders_where_somebody_does(monkeypatch):
    batch = {"image": torch.rand(2, 3, 8, 8), "mask": torch.zeros(2, 8, 8), "id": ["a", "b"], "label": [0, 1]}
    maps = {"random": torch.rand(2, 8, 8), "edge_map": torch.rand(2, 8, 8)}
    pictures, widgets = [], []
    monkeypatch.setattr(plt, "show", lambda: pictures.append(plt.gcf().axes[0].get_title()))
    monkeypatch.setattr("IPython.display.display", widgets.append)
    viewer.browse(batch, maps, ["no", "yes"])
    assert (pictures, widgets) == (["a\nno"], [])
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    monkeypatch.setattr(viewer, "get_ipython", lambda: shell)
    viewer.browse(batch, maps, ["no", "yes"])
    slider, choice = widgets[0].children[:2]
    assert (slider.max, choice.options) == (1, ("random", "edge_map"))
    slider.value, choice.value = 1, "edge_map"
    assert pictures[-1] == "b\nyes"
    plt.close("all")


def test_a_notebook_that_runs_by_itself_makes_no_widget(notebook, tmp_path):
    cell = textwrap.dedent("""
        import ipywidgets, torch
        from lib import viewer
        made = []
        ipywidgets.Widget.on_widget_constructed(lambda widget: made.append(type(widget).__name__))
        batch = {"image": torch.rand(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8), "id": ["a"], "label": [0]}
        viewer.browse(batch, {"random": torch.rand(1, 8, 8)}, ["no", "yes"])
        assert not viewer.live() and not made, made
    """)
    execute.execute(*notebook(f"import os\nos.chdir({str(PROJECT)!r})", cell))
    outputs = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells[-1].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)
