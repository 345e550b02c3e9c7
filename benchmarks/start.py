"""How long the imports of each notebook take, in a new process: what a reader waits for before the first result."""

import json
import statistics
import subprocess
import sys
import time

from lib import PROJECT

REPEATS = 3


def imports(notebook: str) -> str:
    """The import statements of a notebook's code cells."""
    cells = json.loads((PROJECT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    return "\n".join(line for line in lines if line.startswith(("import ", "from ")))


def seconds(code: str) -> float:
    """Median of new processes that run `code`."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def run() -> str:
    """Markdown table; beside each notebook the bare interpreter with torch, which no notebook can do without."""
    codes = {path.name: imports(path.name) for path in sorted((PROJECT / "notebooks").glob("*.ipynb"))}
    lines = ["| start of | seconds |", "|---|---:|"]
    return "\n".join(
        lines + [f"| {name} | {seconds(c):.1f} |" for name, c in {"import torch": "import torch", **codes}.items()]
    )
