"The house rules: what a notebook, the package and the repository must look like."
import ast
import importlib
import json
import os
import re
import subprocess
import sysconfig
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path

import pytest
from forks import start

root = Path(__file__).resolve().parents[1]
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
notebooks = sorted(p for p in (root / "nbs").glob("*.ipynb") if not p.name.startswith("_"))
modules = sorted(p.stem for p in (root / "retina_nb").glob("*.py") if not p.name.startswith("_"))
scripts = dict(line.split("=") for line in cfg["console_scripts"].split())
each_notebook = pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)


@lru_cache(None)
def read(path): return json.loads(path.read_text(encoding="utf-8"))
def code_cells(nb): return [c for c in nb["cells"] if c["cell_type"] == "code"]
def source(cell): return "".join(cell["source"])
def texts(outputs): return "".join("".join(v) for o in outputs for k, v in [("text", o.get("text", "")), *o.get("data", {}).items()]
                                   if not k.startswith("image/png"))

@lru_cache(None)
def module_of(path): return next(iter(re.findall(r"^#\|\s*default_exp\s+(\w+)", "\n".join(map(source, code_cells(read(path)))), re.M)), None)


def skipped(cell):
    "Cells that a plain run leaves out"
    return re.search(r"^#\|\s*(eval:\s*false|notest|slow|gpu|hide)", source(cell), re.M)


def test_there_are_notebooks(): assert {p.stem for p in notebooks} >= {"index", "00_data"}


@each_notebook
def test_opens_with_a_title_and_a_sentence(path):
    first = source(read(path)["cells"][0])
    assert re.match(r"# \S.*\n\n> \S", first), f"{path.name} must open with '# Name' and '> one sentence'"


@each_notebook
def test_cells_have_ids(path):
    nb = read(path)
    ids = [c.get("id") for c in nb["cells"]]
    assert nb["nbformat_minor"] >= 5 and all(ids) and len(set(ids)) == len(ids)


@each_notebook
def test_is_committed_executed(path):
    cells = [c for c in code_cells(read(path)) if not skipped(c)]
    assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"], f"{path.name} holds an error"
    draws = [c for c in cells if re.search(r"^\s*(plt\.show\(\)|.*\bplt\.subplots\()", source(c), re.M) and not source(c).startswith(("#| export", "#|export"))]
    empty = [c["id"] for c in draws if not any("image/png" in o.get("data", {}) for o in c["outputs"]) and "def " not in source(c)]
    assert not empty, f"{path.name}: cells {empty} draw, but hold no figure: make notebooks"
    if len(cells) > 5: assert any(c["outputs"] for c in cells), f"{path.name} was committed without its outputs: make notebooks"


@each_notebook
def test_is_small(path): assert path.stat().st_size < 1_000_000, f"{path.name} is over 1 MB: smaller or fewer figures"


def test_all_notebooks_are_small(): assert sum(p.stat().st_size for p in notebooks) < 6_000_000


@each_notebook
def test_is_clean(path):
    "No paths of somebody's machine, no warnings, no progress bars"
    for cell in read(path)["cells"]:
        outputs = cell.get("outputs", [])
        place = re.search(r"(?<![\w.])/(home|work|tmp|root|Users|var|opt)/\w+", source(cell) + texts(outputs))
        assert not place, f"{path.name}, cell {cell['id']}: absolute path {place[0]}"
        assert not [o for o in outputs if o.get("name") == "stderr"], f"{path.name}, cell {cell['id']}: something on stderr in the stored output"


@each_notebook
def test_figures_say_what_they_show(path):
    "Whoever cannot see a figure hears a sentence, #| fig-alt: \"…\" after the other directives, one for each figure"
    for cell in code_cells(read(path)):
        n_figures = sum("image/png" in o.get("data", {}) for o in cell["outputs"])
        alt = re.search(r"^#\|\s*fig-alt:\s*(.*)$", source(cell), re.M)
        if not n_figures and not alt: continue
        assert alt, f"{path.name}, cell {cell['id']}: a figure without #| fig-alt"
        sentences = json.loads(alt[1])
        sentences = [sentences] if isinstance(sentences, str) else sentences
        assert len(sentences) == max(n_figures, 1) and all(len(s) > 20 for s in sentences), f"{path.name}, cell {cell['id']}: a sentence for each figure"


@each_notebook
def test_pictures_in_text_have_alt_text(path):
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown": assert "![](" not in source(cell), f"{path.name}, cell {cell['id']}: a picture without alt text"


@each_notebook
def test_imports_stand_alone(path):
    "Building the site executes every cell that holds an import"
    for cell in code_cells(read(path)):
        if re.search(r"^#\|\s*(export|eval:\s*false)", source(cell), re.M): continue
        body, imports = ast.parse(source(cell)).body, (ast.Import, ast.ImportFrom)
        if any(isinstance(n, imports) for top in body for n in ast.walk(top)):
            assert all(isinstance(top, imports) for top in body), f"{path.name}, cell {cell['id']}: imports must stand in a cell of their own"


@each_notebook
def test_has_its_module(path):
    module = module_of(path)
    if path.stem == "index": assert module is None
    else: assert module in modules and path.stem.partition("_")[2] == module, f"{path.name} exports {module}: name and number of a notebook are fixed"


@pytest.mark.parametrize("module", modules)
def test_has_its_notebook(module): assert module in [module_of(p) for p in notebooks]


def imports(module):
    "Names of the modules of this package that importing `module` imports"
    tree = ast.parse((root / "retina_nb" / f"{module}.py").read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in inside: continue
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("retina_nb")):
            name = (node.module or "").removeprefix("retina_nb").strip(".")
            yield from [name.split(".")[0]] if name else [a.name for a in node.names]
        elif isinstance(node, ast.Import): yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("retina_nb.")]


def test_imports_form_no_circle():
    left = {m: set(imports(m)) & set(modules) for m in modules}
    while ready := [m for m in left if not left[m] & set(left)]:
        for m in ready: del left[m]
    assert not left, f"these modules import each other in a circle: {left}"


def test_no_module_imports_a_later_chapter():
    "Numbers are the order of dependence; a simulated retina may be had anywhere"
    number = {module_of(p): int(p.stem[:2]) for p in notebooks if p.stem != "index"}
    for m in modules: assert not [other for other in imports(m) if number.get(other, 0) > number[m] and other != "simulation"], m


def test_models_are_asked_by_contract():
    "What a model can do is said by RateModel, never looked for"
    for m in modules: assert "hasattr(" not in re.sub(r"hasattr\((fastcore\.script|cells|stimulus), ", "", (root / "retina_nb" / f"{m}.py").read_text()), m


import_all = """
import importlib, os, sys
for name in sys.argv[1:]: importlib.import_module("retina_nb." + name)
os._exit(0)
"""
import_each = """
import importlib, os, sys
modules = ["retina_nb." + name for name in sys.argv[1:]]
for m in modules: importlib.import_module(m)
for m in [m for m in sys.modules if m.startswith("retina_nb")]: del sys.modules[m]
for m in modules:
    pid = os.fork()
    if not pid:
        importlib.import_module(m)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, m
os._exit(0)
"""


@pytest.mark.parametrize("script", [import_all, pytest.param(import_each, marks=pytest.mark.slow)], ids=["one after the other", "each by itself"])
def test_modules_import(script, tmp_path):
    "Without opening a window or printing"
    (tmp_path / "script.py").write_text(script)
    process = start(tmp_path / "script.py", *modules, cwd=root)
    out, err = process.communicate()
    assert process.returncode == 0 and not out, err + out


def test_no_star_imports():
    for m in modules: assert not re.search(r"^from retina_nb\S* import \*|^from \.\S* import \*", (root / "retina_nb" / f"{m}.py").read_text(), re.M), m


@pytest.mark.parametrize("script", scripts)
def test_command_resolves(script):
    module, _, func = scripts[script].partition(":")
    if module.rpartition(".")[2] not in modules: pytest.fail(f"{script} names {module}, which does not exist")
    assert callable(getattr(importlib.import_module(module), func))


def test_command_shows_its_options():
    command = Path(sysconfig.get_path("scripts")) / "retina_results"
    if not command.exists(): pytest.skip("retina_nb is not installed here: make test installs it")
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--out" in done.stdout, done.stderr


def test_versions_agree():
    import retina_nb
    cff = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)[1]
    changelog = re.search(r"^## (\d[\w.]*)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert retina_nb.__version__ == cfg["version"] == cff == changelog


def test_readme_is_the_index():
    from readme import render
    assert (root / "README.md").read_text(encoding="utf-8") == render(), "README.md and nbs/index.ipynb differ: make readme"
    assert "TODO" not in render(), "the index still has a number to be filled in"


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (root / "README.md").read_text(encoding="utf-8"))
    assert links and not [x for x in links if not (root / x).exists()]


def test_index_names_every_notebook_and_column():
    from retina_nb.results import columns
    index = "".join(source(c) for c in read(root / "nbs" / "index.ipynb")["cells"])
    assert not [p.name for p in notebooks if p.stem != "index" and f"({p.name})" not in index]
    assert not [c for c in columns if f"`{c}`" not in index]


def test_quarto_project_is_linked():
    link = root / "nbs" / "_quarto.yml"
    assert link.is_symlink() and os.readlink(link) == "../_quarto.yml"
    assert "metadata-files: [nbdev.yml, sidebar.yml]" in link.read_text() and "custom_quarto_yml" not in cfg


def test_build_system_only():
    "A [project] table would take the place of settings.ini"
    assert re.findall(r"^\[.*\]", (root / "pyproject.toml").read_text(), re.M) == ["[build-system]"]


def test_constraints_satisfy_the_requirements():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    lines = [Requirement(x) for x in (root / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    pins = {canonicalize_name(r.name): str(r.specifier)[2:] for r in lines if not r.marker or r.marker.evaluate()}
    for req in map(Requirement, (cfg["requirements"] + " " + cfg["dev_requirements"]).split()):
        assert req.specifier.contains(pins[canonicalize_name(req.name)]), f"constraints.txt pins {req.name} outside {req.specifier}"
