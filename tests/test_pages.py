"The pages of the site, as far as they are made before Quarto sees them"
import ast
import base64
import inspect
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from execnb.nbio import read_nb
from nbdev.processors import FilterDefaults
from PIL import Image
from test_house import modules, notebooks, root

import pages
import small_figures
from retina_nb.adaptive import AdaptiveSubunits
from retina_nb.bncnn import BNCNN
from retina_nb.benchmarks import run_benchmarks
from retina_nb.data import Part
from retina_nb.metrics import cc_norm
from retina_nb.training import FiringRates, fit


def shown(thing): return pages.Entry(thing)._repr_markdown_()


def test_a_class_is_a_class_and_has_its_source():
    text = shown(AdaptiveSubunits)
    assert "class AdaptiveSubunits(\n" in text and "def AdaptiveSubunits" not in text
    assert "<details><summary>Source of AdaptiveSubunits" in text and "self._add_start()" in text
    assert "class Part(\n" in shown(Part) and "<details>" not in shown(Part) and "NoneType" not in shown(Part)


@pytest.mark.parametrize("thing", [fit, cc_norm, run_benchmarks, FiringRates, FiringRates.on_train_epoch_end], ids=lambda t: t.__qualname__)
def test_only_own_words(thing):
    "No docstring of Lightning's or Python's, no address in memory, no parameters twice"
    text = shown(thing)
    assert not re.search(r"Call self|:meth:|:class:| at 0x|Parameters\n-+", text)


def test_defaults_without_addresses():
    def f(x, run=fit, rules={"a": [fit, "b"]*20}): "Stars * and `*` and a_b"  # noqa: B006
    text = shown(f)
    assert "0x" not in text and max(map(len, text.splitlines())) < 150
    assert r"Stars \* and `*` and a\_b" in text


def test_no_default_is_an_array():
    "One stops the building of the site, since nbdev compares defaults"
    for module in modules:
        tree = ast.parse((root/"retina_nb"/f"{module}.py").read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        defaults = [(f.name, ast.unparse(default)) for f in functions for default in [*f.args.defaults, *f.args.kw_defaults] if default]
        arrays = [f"{name}: {default}" for name, default in defaults if re.match(r"(np|torch|pd)\.\w+(\.\w+)*\(", default)]
        assert not arrays, f"{module}: {arrays}: make it in the function"


def test_comments_of_the_rest_stay_in_their_place():
    def f(a, # first
          *more, # others
          **options, # of something
    ) -> Part: "One line"
    text = shown(f)
    assert "    *more, # others\n" in text and "    **options, # of something\n" in text and ")->Part:\n" in text
    assert "    **given, # hyperparameters that differ from `hyperparams`\n" in shown(BNCNN)
    assert "    **trainer_kwargs, # of Lightning's Trainer" in shown(fit) and ")->Run:\n" in shown(fit)


def test_no_places_in_memory():
    assert pages.without_places("{'x': <function f.<locals>.g at 0x7fd09179ed40>, 'y': 1}") == "{'x': <function f.<locals>.g>, 'y': 1}"


def test_a_parameter_is_no_function():
    text = pages.linked("```python\ndef f(\n    step, # apart\n    fit=3\n)\n```\n\n*Samples `step` apart, for `cc_max`*")
    assert "*Samples `step` apart, for [`cc_max`](metrics.html#cc_max)*" in text


def test_links_are_relative_and_not_in_code():
    text = pages.linked("`fit` and `cc_max`, [`fit`](05_training.ipynb), `subunits`\n```python\nfit # `fit`\n```\n`nothing_of_that_name`")
    assert text.startswith("[`fit`](training.html#fit) and [`cc_max`](metrics.html#cc_max), [`fit`](05_training.ipynb), `subunits`\n")
    assert "fit # `fit`" in text and text.endswith("\n`nothing_of_that_name`") and "https://" not in text


def test_tables_are_markdown():
    table = pd.DataFrame({"a|b": [1, 2], "c": ["x", "y"]}, index=pd.Index(["one", "two"], name="row"))
    assert pages.markdown_table(table.to_html()).splitlines() == [
        r"| row | a\|b | c |", "| --- | ---: | ---: |", "| one | 1 | x |", "| two | 2 | y |"]
    assert pages.markdown_table(pd.concat({"top": table}, axis=1).to_html()) is None    # stays plain text


def test_no_line_is_wider_than_the_page():
    for text in ("word "*60, "    " + "word "*60, "x"*300):
        assert max(map(len, pages.narrow(text).splitlines())) <= pages.WIDTH
    assert pages.narrow("a  b\n\n  c") == "a  b\n\n  c"


def test_drawings_are_marked_as_quarto_wants_them():
    for name, n in (("index", 2), ("02_bncnn", 1), ("03_cnnbilstm", 1), ("11_adaptive", 1)):
        cells = read_nb(root/"nbs"/f"{name}.ipynb").cells
        for cell in cells: pages.drawings(cell)
        assert sum("".join(cell.source).count("```{mermaid}\nflowchart") for cell in cells) == n


@pytest.fixture(scope="module")
def processed():
    nb = read_nb(root/"nbs"/"05_models.ipynb")
    return FilterDefaults()(nb) or nb


def test_a_chapter(processed):
    texts = ["".join(cell.source) for cell in processed.cells]
    colab, = [text for text in texts if "colab.research.google.com" in text]
    assert "/blob/main/nbs/05_models.ipynb" in colab and "!pip install git+https://github.com/retina-nb/retina_nb" in colab
    assert not [o for cell in processed.cells for o in cell.get("outputs", []) if "text/html" in o.get("data", {})]


def test_margin_and_list_of_functions():
    "Every notebook once, in its group; every public function with a link into a page"
    groups = yaml.safe_load(pages.sidebar())["website"]["sidebar"]["contents"]
    listed = [entry["href"] for group in groups for entry in group.get("contents", [])]
    assert sorted(listed) == sorted(p.name for p in notebooks) and groups[0]["contents"][0]["href"] == "index.ipynb"
    page = pages.list_of_functions()
    assert "- [`fit`](training.html#fit): Train a model" in page and "https://" not in page
    assert all(name in page for name in ("`train_run`", "`RateModel`", "`subunits`", "`write_recording`"))


def test_nothing_of_a_title_is_lost():
    "nbdev makes a page's head of the first cell and drops what else is in it"
    for path in notebooks:
        lines = "".join(read_nb(path).cells[0].source).strip().splitlines()
        assert all(line.startswith(("# ", "> ")) or not line for line in lines), f"{path.name}: put the rest of the first cell into the next one"


def test_equations_fit():
    "One that is long is broken in an aligned block"
    for path in notebooks:
        for cell in read_nb(path).cells:
            if cell.cell_type != "markdown": continue
            for equation in re.findall(r"\$\$(.*?)\$\$", "".join(cell.source), re.S):
                visible = [re.sub(r"\\(mathrm|text|begin|end|big|Big|left|right|frac|sum|hat|bar|qquad|quad|langle|rangle)|[{}&\\ ]", "", line) for line in equation.split("\\\\")]
                assert max(map(len, visible)) < 90, f"{path.name}: {equation}"


def test_site_settings():
    config = yaml.safe_load((root/"_quarto.yml").read_text())
    html, website = config["format"]["html"], config["website"]
    assert html["code-overflow"] == "wrap" and html["lightbox"] and html["grid"]["body-width"]
    assert set(html["theme"]) == {"light", "dark"} and website["page-navigation"] and (root/"nbs"/website["favicon"]).is_file()
    assert "$web-font-path: false" in (root/"nbs"/"offline.scss").read_text()
    assert inspect.signature(pages.Entry).parameters.keys() >= {"sym", "name", "title_level"}    # as nbdev calls it


# --- figures -----------------------------------------------------------------------------------------------------------------


def drawn():
    "A figure as a notebook holds it"
    file = io.BytesIO()
    with plt.rc_context(fname=root/"nbs"/"matplotlibrc"):
        fig, ax = plt.subplots(figsize=(6, 2.2))
        for shift in range(6): ax.plot(np.sin(np.arange(100)/9 + shift), label=f"{shift}")
        ax.legend()
        fig.savefig(file, format="png")
    plt.close(fig)
    return base64.b64encode(file.getvalue()).decode()


def test_figures_are_sharp_and_small():
    large = drawn()
    small = small_figures.small(large)
    before, after = (Image.open(io.BytesIO(base64.b64decode(figure))) for figure in (large, small))
    assert before.size[0] in range(600, 661) and after.size == before.size    # 100 to 110 dots an inch
    off = np.asarray(before.convert("RGB"), float) - np.asarray(after.convert("RGB"), float)
    assert len(small) < len(large)/2 and np.sqrt((off**2).mean()) < 3
    assert small_figures.small(small) == small


def test_a_room_comes_before_what_is_built_of_it():
    "The margin lists the chapters as the home page does, not by the alphabet"
    names = [path.stem for paths in pages.chapters().values() for path in paths]
    assert names[0] == "index" and sorted(names) == sorted(path.stem for path in notebooks)
    for room, page in (("11_subunit_model", "11_adaptive"), ("10_timing", "10_benchmarks"), ("08_ridge", "08_ln"), ("01_tuning", "01_eda")):
        assert names.index(room) < names.index(page)
