"Writes README.md from nbs/index.ipynb, so that the two cannot drift."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

here = Path(__file__).resolve().parent


def render() -> str:
    "The index as Markdown for GitHub: hidden cells and directives left out, links relative to the root of the repository"
    nb = nbformat.read(here / "nbs" / "index.ipynb", as_version=4)
    nb.metadata["language_info"] = {"name": "python"}
    nb.cells = [c for c in nb.cells if not re.search(r"^#\|\s*hide", c.source, re.M)]
    for cell in nb.cells: cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.M)
    plain = Config(NbConvertBase={"display_data_priority": ["text/markdown", "text/plain"]})
    body, _ = MarkdownExporter(config=plain).from_notebook_node(nb)
    body = re.sub(r"\]\((?!\w+:|#)", "](nbs/", body)
    return re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


if __name__ == "__main__": (here / "README.md").write_text(render(), encoding="utf-8")
