"How the notebooks become the pages of the site: what nbdev does with them is set right here, in one place (settings.ini names it)."
import inspect
import re
import textwrap
from importlib import import_module
from itertools import groupby
from pathlib import Path

import yaml
from execnb.nbio import mk_cell, read_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev.showdoc import BasicMarkdownRenderer

from retina_nb import _modidx

WIDTH = 100  # columns of an output
NOT_LINKED = {"subunits", "pool", "delay", "train", "models", "columns", "published"}  # hyperparameters and words of these names


# --- functions and classes ---------------------------------------------------------------------------------------------


class Entry(BasicMarkdownRenderer):
    "A function or class: its signature with comments, and the first sentence of its own docstring"
    def __init__(self, sym, name=None, title_level=3):
        super().__init__(sym, name=name, title_level=title_level)
        own = vars(sym).get("__doc__") if inspect.isclass(sym) else getattr(self.sym, "__doc__", None)
        summary = inspect.cleandoc(own or "").partition("\n\n")[0]
        self.docs = "" if summary.startswith("Parameters\n---") else escaped(" ".join(summary.split()))
    def _repr_markdown_(self):
        is_special = self.nm.rpartition(".")[2].startswith("__")
        if is_special and not (self.docs or self.dm.has_docment): return ""
        text = with_rest(without_addresses(super()._repr_markdown_()), self.sym)
        if not inspect.isclass(self.sym): return text
        text = re.sub(r"^def (\w+)\(", r"class \1(", text, count=1, flags=re.M)
        text = re.sub(r"^(.*)\)(->\w+)?:(.*)\n```", r"\1)\3\n```", text, count=1, flags=re.M)
        is_model = any(base.__name__ == "Module" for base in inspect.getmro(self.sym))
        return text + folded_source(self.fn) if is_model else text


def with_rest(text, thing):
    "The comment of `*args` and `**kwargs` in its place; fastcore loses it, or says it of the result"
    source = _source(thing.__init__ if inspect.isclass(thing) else thing)
    for name, comment in re.findall(r"^\s+(\*{1,2}\w+),?\s+# (.*)$", source, re.M):
        line = f"    {name}, # {comment}"
        text = text.replace(f": # {comment}\n", ":\n")
        text = re.sub(rf"^    {re.escape(name)},?$", lambda match: line, text, count=1, flags=re.M)
    return text


def _source(thing):
    "The code of a function; none of what Python itself is made of"
    try: return inspect.getsource(thing)
    except (OSError, TypeError): return ""


def folded_source(full_name):
    "The code of a class as it is in its module, behind a line to click on"
    found = NbdevLookup()[full_name]
    if not isinstance(found, tuple): return ""
    _, path, _ = found
    name = full_name.rpartition(".")[2]
    kind = getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)
    return f"\n\n<details><summary>Source of {name}</summary>\n\n```python\n{inspect.getsource(kind)}```\n\n</details>"


def escaped(text):
    "Text in which a star is a star; what is in backticks stays"
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", part) for part in parts)


def without_addresses(text):
    "Defaults without addresses in memory, and long ones cut"
    text = re.sub(r"<(?:function|class) ['\w.<>]+(?: at 0x\w+)?>", "…", text)
    text = text.replace(":NoneType=None", "=None")
    return re.sub(r"=(\{|\[|\().{60,}?(\}|\]|\)),(?= #|\n)", r"=\1…\2,", text)


class InOrder(Processor):
    "nbdev shows the functions of a cell from the last to the first; here they are in the order of the module"
    def end(self):
        def is_entry(cell): return cell.cell_type == "code" and "show_doc(" in (cell.get("source") or "")
        cells = []
        for entries, run in groupby((c for c in self.nb.cells if c.get("source") is not None), key=is_entry):
            cells += sorted(run, key=_line) if entries else run
        self.nb.cells = cells


def _line(cell):
    "Where in its module an entry is defined"
    found = re.search(r"\.py#L(\d+)", str(cell.get("outputs", "")))
    return int(found[1]) if found else 0


# --- links ---------------------------------------------------------------------------------------------------------------


def links(cell):
    "Links from names to pages of this site, relative; none inside code"
    if cell.cell_type == "markdown" and cell.get("source"): cell.source = linked(cell.source)
    for output in cell.get("outputs", []):
        if "text/markdown" in output.get("data", {}):
            output["data"]["text/markdown"] = linked("".join(output["data"]["text/markdown"]))


def linked(text):
    "Markdown whose names in backticks are links, where there is something to link to"
    parts = re.split(r"(^```.*?^```|^\$\$.*?^\$\$|\[[^\]]*\]\([^)]*\))", text, flags=re.M | re.S)
    parameters = re.findall(r"^ {4}\*{0,2}(\w+)(?=[:=,])", text, re.M)    # a function's own mean no other function
    not_linked = NOT_LINKED.union(parameters)
    def link(match): return match[0] if match[1] in not_linked else _link(match)
    return "".join(part if i % 2 else re.sub(r"`([^`\s]+?)(\(\))?`", link, part) for i, part in enumerate(parts))


def _link(match):
    "One name in backticks"
    found = NbdevLookup().doc(match[1])
    if found is None: return match[0]
    home = get_config().doc_host + get_config().doc_baseurl + "/"
    return f"[{match[0]}]({found.removeprefix(home)})"


def drawings(cell):
    "Drawings as Quarto marks them; GitHub and Jupyter know `mermaid` alone"
    if cell.cell_type == "markdown" and cell.get("source"): cell.source = cell.source.replace("```mermaid", "```{mermaid}")


# --- outputs ---------------------------------------------------------------------------------------------------------------


def plain_outputs(cell):
    "Tables as Markdown, since one in HTML brings scripts from elsewhere along, and no line wider than the page"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/html" in data:
            table = markdown_table("".join(data.pop("text/html")))
            if table: data["text/markdown"] = table
        for texts, kind in ((data, "text/plain"), (output, "text")):
            if kind in texts: texts[kind] = narrow(without_places("".join(texts[kind])))


def without_places(text):
    "Text without addresses in memory"
    return re.sub(r" at 0x[0-9a-f]{6,}(?=>)", "", text)


def narrow(text):
    "Text whose lines are wrapped where they are too wide, with a hanging indent"
    return "\n".join(_narrow_line(line) for line in text.split("\n"))


def _narrow_line(line):
    if len(line) <= WIDTH: return line
    indent = " "*(len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False)


def markdown_table(html):
    "What pandas wrote in HTML, in Markdown; None where cells span others, or it is no table"
    if "<table" not in html or re.search(r"(col|row)span", html): return None
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", html, re.S)]
    n_head = len(re.findall(r"<tr", html.partition("</thead>")[0]))
    head = [" ".join(filter(None, names)) for names in zip(*rows[:n_head])]
    lines = [head, ["---", *["---:"]*(len(head) - 1)], *rows[n_head:]]
    return "\n".join(f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# --- every chapter -----------------------------------------------------------------------------------------------------------


class InColab(Processor):
    "A line below the title: this chapter in Colab, and what to install there"
    def end(self):
        cfg, name = get_config(), Path(self.nb.path_).name
        if name == "index.ipynb": return
        notebook = f"{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{cfg.nbs_path.name}/{name}"
        line = (f"[Open in Colab](https://colab.research.google.com/github/{notebook}){{.colab}}, "
                f"and install there first: `!pip install git+{cfg.git_url}`")
        self.nb.cells.insert(2, mk_cell(line, "markdown"))


# --- what is written before: the list of chapters in the margin, and the list of all functions ----------------------------------


GROUPS = {"Start": ("index", "16"), "Data": ("00", "01", "07", "20"), "Models": ("02", "03", "04", "05", "08", "11", "19"),
          "Results": ("06", "09", "10", "15", "17"), "Own work": ("12", "13", "14", "18")}


def chapters():
    "Notebooks by group, each once; one whose number is in no group is own work"
    notebooks = sorted(get_config().nbs_path.glob("[!_]*.ipynb"), key=_in_reading_order())
    group_of = {number: group for group, numbers in GROUPS.items() for number in numbers}
    groups = {group: [] for group in GROUPS}
    for path in notebooks: groups[group_of.get(path.stem.partition("_")[0], "Own work")].append(path)
    return groups


def _in_reading_order():
    "A key to sort notebooks by: the home page, then as its table has them, then those that it does not name"
    home = read_nb(get_config().nbs_path/"index.ipynb")
    rows = [line for cell in home.cells for line in cell.source.splitlines() if line.startswith("|")]
    order = ["index.ipynb", *re.findall(r"\((\w+\.ipynb)\)", "\n".join(rows))]
    place = {name: i for i, name in enumerate(order)}
    return lambda path: (place.get(path.name, len(order)), path.name)


def title(path):
    "Number and title of a chapter"
    number, _, _ = path.stem.partition("_")
    first = "".join(read_nb(path).cells[0].source)
    name = re.match(r"# (.*)", first)[1].strip()
    return name if number == "index" else f"{number} {name}"


def sidebar():
    "The chapters in groups, as Quarto reads them"
    contents = [{"section": group, "contents": [{"text": title(path), "href": path.name} for path in paths]}
                for group, paths in chapters().items()]
    contents.append({"text": "All functions", "href": "api.qmd"})
    return yaml.dump({"website": {"sidebar": {"contents": contents}}}, sort_keys=False, allow_unicode=True)


def list_of_functions():
    "A page with every public function and class, chapter by chapter"
    lines = ["---", "title: All functions", "---", ""]
    for module, names in _modidx.d["syms"].items():
        public = {name.removeprefix(f"{module}."): place for name, (place, _) in names.items()}
        public = {name: place for name, place in public.items() if "." not in name and not name.startswith("_")}
        if public: lines += [f"## {module.rpartition('.')[2]}", "", *(_listed(module, *entry) for entry in public.items()), ""]
    return "\n".join(lines)


def _listed(module, name, place):
    "A line: a link, and what the thing is for"
    thing = getattr(import_module(module), name, None)
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else getattr(thing, "__doc__", None)
    summary = " ".join(inspect.cleandoc(own or "").partition("\n\n")[0].split())
    return f"- [`{name}`]({place}): {escaped(summary)}"


if __name__ == "__main__":
    (get_config().nbs_path/"sidebar.yml").write_text(sidebar(), encoding="utf-8")
    (get_config().nbs_path/"api.qmd").write_text(list_of_functions(), encoding="utf-8")
