"""Run docs/tutorial.md and write docs/tutorial.ipynb with its outputs.

Usage: ``python docs/build_tutorial.py``. Edit the .md, never the .ipynb.
"""

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SOURCE = Path(__file__).with_name("tutorial.md")


def main() -> None:
    notebook = jupytext.read(SOURCE)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True)
    client.execute()
    for number, cell in enumerate(notebook.cells):
        # What differs from run to run, or from machine to machine, would fill every diff.
        cell.id = f"cell-{number:02}"
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    target = SOURCE.with_suffix(".ipynb")
    jupytext.write(notebook, target, fmt="ipynb")
    print(f"wrote {target.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
