"What is said and kept: undefined numbers, cells that are not perfect, names from files, damaged run folders, narrow terminals, many cells"
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from retina_nb import evaluation, report
from retina_nb.bncnn import BNCNN, hyperparams
from retina_nb.data import InputError, Part, Recording, write_recording
from retina_nb.evaluation import Evaluation, common_cells, evaluate, evaluations, read_rates, steadiness
from retina_nb.inputs import printable
from retina_nb.report import Section, html_report, markdown_report, print_summary, report_sections, write_results
from retina_nb.results import cells_table, csv_text, differences, format_table, notes, results_table, seeds_table, short_table
from retina_nb.training import Run, fit, train_run


def record(path, cells=4, repeats=4):
    rng = np.random.default_rng(0)

    def movie(n): return rng.integers(0, 256, (n, 12, 12), dtype=np.uint8)

    def spikes(m):
        rate = np.maximum(0, 128. - np.roll(m.reshape(len(m), -1)[:, :cells], 1, 0))/2
        n = rng.poisson(rate/100)
        return [np.repeat(np.arange(len(k)), k)/100 for k in n.T]

    train, shown = movie(2000), movie(400)
    return write_recording(path, train, spikes(train), test_stimulus=shown, test_spikes=[spikes(shown) for _ in range(repeats)])


def tiny(rec, out, seed=0, history=2, epochs=1):
    torch.manual_seed(seed)
    model = BNCNN(**{**hyperparams, "img_shape": [history, 12, 12], "chans": [2, 2], "ksizes": [3, 3], "n_units": rec.n_cells, "softplus": True})
    return fit(model, rec, out, epochs=epochs, batch_size=128, lr=5e-3, seed=seed, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rec = Recording(record(folder/"rec.h5"))
    return [tiny(rec, folder/"runs"/"one").path, tiny(rec, folder/"runs"/"two", seed=1, history=3).path]


@pytest.fixture
def runs(trained, tmp_path):
    "Copies, with a recording that may be changed"
    copies = [Run(shutil.copytree(path, tmp_path/"runs"/path.name)) for path in trained]
    rec = Recording(copies[0].config["data"])
    for run in copies: run.recording = rec
    return copies


def predicting(run, change):
    "The run, with other predictions of the test movie"
    parts = evaluate(run)
    rates = parts["test"].rates.copy()
    change(rates)
    parts["test"] = parts["test"]._replace(rates=rates)
    return run


@pytest.mark.parametrize("value", [3., np.nan, np.inf])
def test_a_prediction_that_says_nothing_counts_as_0(runs, value):
    "In the mean, its interval, the ranking, CC_norm, differences; and it is said"
    whole, broken = runs
    rng, recorded = np.random.default_rng(0), whole.recording.test.rates
    guess = recorded + 5*rng.normal(size=recorded.shape)
    for run in runs: predicting(run, lambda rates: np.copyto(rates, guess))
    evaluate(broken)["test"].rates[slice(5, None) if value == np.inf else slice(None), 0] = value
    table = results_table([whole]).iloc[0]
    r, norm = (Evaluation(whole, "").cells[c].to_numpy() for c in ("test_corr", "cc_norm"))
    best, row = results_table(runs).itertuples()
    assert best.model == "BNCNN (one)" and row.model == "BNCNN (two)"
    np.testing.assert_allclose(best.test_corr, table.test_corr)
    np.testing.assert_allclose(row.test_corr, r[1:].sum()/4, rtol=1e-9)
    np.testing.assert_allclose(row.cc_norm, norm[1:].sum()/4, rtol=1e-9)
    assert row.test_corr_lo < row.test_corr < row.test_corr_hi < best.test_corr_hi
    d = differences(runs).iloc[0]
    np.testing.assert_allclose(d.difference, -r[0]/4, rtol=1e-6)
    assert d.lo <= d.difference <= d.hi < 0
    cells = cells_table(runs)
    assert cells.constant.tolist() == [False]*4 + [True] + [False]*3 and cells.test_corr[4] == 0
    assert any("BNCNN (two) predicts a constant, or no number, for cell01" in s for s in notes(runs))


def test_a_silent_cell_is_in_no_mean(runs):
    rec = runs[0].recording
    rec.test.rates[:, 2] = 0
    rec.test.repeats[:, :, 2] = 0
    table = results_table(runs)
    for run, label in zip(runs, ("BNCNN (one)", "BNCNN (two)")):
        rates = evaluate(run)["test"].rates
        known = np.isfinite(rates).all(1)
        r = [stats.pearsonr(rec.test.rates[known, c], rates[known, c]).statistic for c in (0, 1, 3)]
        np.testing.assert_allclose(table.set_index("model").test_corr[label], np.mean(r), rtol=1e-6)
    said = " ".join(notes(runs))
    assert "of 4 cells these are used: test_corr 3, cc_max 3" in said
    words = " ".join(section.text for section in report_sections(runs))
    assert "left out of them, since no correlation is defined: cell03" in words and "kept in the mean correlations above" not in words


def test_the_same_cells_for_all_models(runs):
    "A number that one model lacks is in no model's mean"
    one, two = (Evaluation(run, run.name) for run in runs)
    two.cells.loc[1, "cc_norm"] = np.nan
    table = results_table([one, two])
    assert common_cells([one, two], "cc_norm").tolist() == [True, False, True, True]
    for row, e in zip(table.itertuples(), (one, two)): np.testing.assert_allclose(row.cc_norm, e.cells.cc_norm[[0, 2, 3]].mean())
    two.cells["cc_norm"] = np.nan                                     # it has none at all: another question
    np.testing.assert_allclose(results_table([one, two]).cc_norm[0], one.cells.cc_norm.mean())


def test_cells_that_were_not_recorded_all_the_time(runs, tmp_path):
    "Every table and figure, and the numbers of loops over cells"
    rec = runs[0].recording
    rec.train.rates[1200:, 1] = np.nan
    rec.train.counts[1200:, 1] = np.nan
    rec.test.repeats[3, :, 2] = np.nan
    rec.test.repeats[2, 100:, 3] = np.nan
    rec.test.rates[:] = np.nanmean(rec.test.repeats, 0)
    rec.test.rates[150:180, 0] = np.nan
    cells = Evaluation(runs[0], "").cells
    for part in ("train", "val", "test"):
        index, recorded, rates = evaluate(runs[0])[part]
        for c in range(4):
            known = ~np.isnan(recorded[:, c]) & ~np.isnan(rates[:, c])
            expected = stats.pearsonr(recorded[known, c], rates[known, c]).statistic if known.sum() > 1 else np.nan
            np.testing.assert_allclose(cells[f"{part}_corr"][c], expected, rtol=1e-5)
    assert cells.test_corr.notna().all() and cells.cc_max.notna().all() and cells.bits_per_spike.notna().all()
    said = " ".join(notes(runs))
    assert "cell02 (60% of the training movie)" in said and "cell03 (3 of 4 repeats)" in said
    write_results(runs, tmp_path/"out")
    seeds_table(runs)


# --- kept predictions --------------------------------------------------------------------------


def no_prediction(monkeypatch): monkeypatch.setattr(evaluation, "predict", lambda *args: pytest.fail("predicted again"))


def test_predictions_are_kept(trained, tmp_path, monkeypatch):
    path = shutil.copytree(trained[0], tmp_path/"run")
    (path/"predictions.npz").unlink(missing_ok=True)
    table = results_table([Run(path)])
    assert (path/"predictions.npz").is_file()
    moved = path.rename(tmp_path/"elsewhere")
    no_prediction(monkeypatch)
    pd.testing.assert_frame_equal(results_table([Run(moved)]), table)
    pd.testing.assert_frame_equal(results_table(str(moved)), table)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[int(at*len(data))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["weights", "seed", "cut", "empty", "text", "folder", "other shape", "other numbers", *range(12)])
def test_what_does_not_fit_is_predicted_anew(trained, tmp_path, what):
    path = shutil.copytree(trained[0], tmp_path/"run")
    evaluate(Run(path))
    file = path/"predictions.npz"
    if what == "weights":
        state = torch.load(path/"model.pth", weights_only=True)
        name = next(name for name in state if name.endswith("weight"))
        state[name] += .5
        run = Run(path)
        run.model.load_state_dict(state)
    else: run = Run(path)
    if what == "seed": run.config["seed"] = 5                     # another split
    if what == "cut": file.write_bytes(file.read_bytes()[:-100])
    if what == "empty": file.write_bytes(b"")
    if what == "text": file.write_text("rates")
    if what == "folder": file.unlink(); file.mkdir()
    if what in ("other shape", "other numbers"):
        kept = dict(np.load(file))
        comment = __import__("zipfile").ZipFile(file).comment.decode()
        kept["test"] = kept["test"][:-1] if what == "other shape" else kept["test"].astype(np.float64)
        evaluation.keep_rates(file, comment, kept)
    if isinstance(what, int): flip(file, what/12 + .01)
    got = evaluate(run)
    file.rmdir() if what == "folder" else file.unlink(missing_ok=True)
    fresh = Run(path)
    fresh.config["seed"] = run.config["seed"]
    fresh.model.load_state_dict(run.model.state_dict())
    for part, predicted in evaluate(fresh).items(): np.testing.assert_array_equal(got[part].rates, predicted.rates)


def test_where_nothing_can_be_kept(trained, tmp_path, monkeypatch):
    path = shutil.copytree(trained[0], tmp_path/"run")
    (path/"predictions.npz").unlink(missing_ok=True)

    def refuse(*args, **kwargs): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(evaluation, "atomic_write", refuse)
    assert np.isfinite(results_table([Run(path)]).test_corr).all() and not (path/"predictions.npz").exists()


def test_a_declared_size_is_not_believed(tmp_path):
    "A header that promises a terabyte"
    evaluation.keep_rates(tmp_path/"a.npz", "key", {"test": np.zeros((3, 2), np.float32)})
    data = (tmp_path/"a.npz").read_bytes().replace(b"(3, 2)", b"(3, 9)")
    (tmp_path/"a.npz").write_bytes(data)
    assert read_rates(tmp_path/"a.npz", "key", {"test": (3, 2)}) is None
    assert read_rates(tmp_path/"a.npz", "key", {"test": (10**6, 10**6)}) is None


# --- what training wrote -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "folder", "", "\x00\x01\x02", "epoch\n0\n", "no commas at all", b"\xff\xfe\x00", "text", "ragged"])
def test_a_damaged_history_is_one_line(trained, tmp_path, damage):
    path = shutil.copytree(trained[0], tmp_path/"run")
    history = path/"history.csv"
    text = history.read_text()
    history.unlink()
    if damage == "folder": history.mkdir()
    elif damage == "text": history.write_text(text.replace(text.splitlines()[1].split(",")[2], "many", 1))
    elif damage == "ragged": history.write_text(text + "1,2,3,4,5,6,7,8,9,10,11,12,13,14\n")
    elif isinstance(damage, bytes): history.write_bytes(damage)
    elif damage != "gone": history.write_text(damage)
    with pytest.raises(InputError) as e: results_table([Run(path)])
    assert "history.csv" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 400


# --- paths, labels, terminals ------------------------------------------------------------------


def test_paths_will_do(trained):
    by_run = results_table([Run(path) for path in trained])
    for given in (trained, [str(path) for path in trained], trained[0].parent, str(trained[0].parent), [trained[0].parent]):
        pd.testing.assert_frame_equal(results_table(given), by_run)
    for given in (trained[0], str(trained[0]), Run(trained[0])): assert len(results_table(given)) == 1
    with pytest.raises(InputError, match="nowhere"): results_table("nowhere")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_table_fits_the_terminal(runs, width, monkeypatch, tmp_path, capsys):
    every = evaluations(runs)
    every[0].label = "GLM with spike history, 15-10-07 (a folder whose name goes on and on, as they do)"
    every[1].label = "x"*300
    lines = short_table(every, width).splitlines()
    assert max(map(len, lines)) <= width and "\\" not in "".join(lines)
    monkeypatch.setenv("COLUMNS", str(width))
    print_summary(every, "out")
    said = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in said if not line.startswith("x")) <= width
    for title in ("test correlation", "ceiling", "CC_norm", "bits/spike", "seconds"): assert title in "".join(said)


class Tags(HTMLParser):
    "Which elements and attributes a page has, and its text"
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.words = set(), set(), []
    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
    def handle_data(self, text): self.words.append(text)


HOSTILE = ["<img src=x onerror=alert(1)>", "=HYPERLINK(\"http://x\")", "[click](javascript:alert(1))", "a|b", "@SUM(1)", "+1", "-2+3",
           "\x1b[31mred", "# head", "`code`", "line\nbreak", "\udcff", "\t=1", "![](x)", "&lt;b&gt;", "*b*", "\u202e", "<!--", "{0}", "%s"]


def test_names_from_files_are_harmless(runs, tmp_path, capsys):
    rec = runs[0].recording
    for at in range(0, len(HOSTILE), 4):
        some = HOSTILE[at:at + 4]
        rec.cell_names = some
        evaluation._memory.clear()
        for run in runs: predicting(run, lambda rates: rates.__setitem__((slice(None), slice(None)), 1.))
        runs[0].name, runs[1].name = some[:2]
        rec.session = some[2]
        out = write_results(runs, tmp_path/f"out{at}")
        page = Tags()
        page.feed((out/"report.html").read_text())
        plain = Tags()
        plain.feed(html_report([Section("a", "b", pd.DataFrame({"a": ["b"]}))], {}, []))
        assert page.tags <= plain.tags | {"br", "img", "wbr"} and page.attributes <= plain.attributes | {"alt", "style", "src"}
        markdown = (out/"results.md").read_text()
        assert "<img" not in markdown and "<!--" not in markdown and "[click](j" not in markdown and "\n# head" not in markdown
        tables = [line for line in markdown.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in tables[:4]}) == 1
        for name in ("cells.csv", "results.csv"):
            table = pd.read_csv(out/name, dtype=str, keep_default_na=False)
            for column in table.columns:
                numbers = pd.to_numeric(table[column], errors="coerce").notna()
                assert not table[column][~numbers].str.lstrip().str.startswith(("=", "+", "-", "@")).any()
        print_summary(runs, out)
        assert "\x1b" not in capsys.readouterr().out


def test_formulas():
    table = pd.DataFrame({"=a": ["=1", "+1", "-1", "@x", " =1", "\t=1", "a=1", "", None], "n": [-1., 2, 3, 4, 5, 6, 7, 8, np.nan]})
    lines = csv_text(table).splitlines()
    assert [line.split(",")[0].strip('"')[:1] for line in lines[:7]] == ["'"]*7 and lines[7].startswith("a=1") and lines[1].endswith("-1.0")


def test_markdown_of_a_number_stays_one():
    text = markdown_report([Section("T", "t", pd.DataFrame({"x": ["-0.5 [-0.6, 0.1]", "–", "1,234"], "n": [1, 2, 3]}))], [])
    assert "| -0.5 [-0.6, 0.1] | 1 |" in text and "| – | 2 |" in text


def test_figures_of_models_with_alike_names(runs, tmp_path):
    every = evaluations(runs)
    every[0].label, every[1].label = "A b", "A/b"
    out = write_results(every, tmp_path/"out")
    assert {"rates_a_b.png", "rates_a_b_2.png"} <= {f.name for f in (out/"figures").iterdir()}


def test_what_is_in_the_way_is_not_replaced(runs, tmp_path):
    (tmp_path/"out"/"cells.csv").mkdir(parents=True)
    with pytest.raises(InputError, match="cells.csv: expected a file to replace"): write_results(runs[:1], tmp_path/"out")
    assert sorted(f.name for f in (tmp_path/"out").iterdir()) == ["cells.csv"]
    with pytest.raises(InputError, match="a file at"): report.output_folder(runs[0].path/"config.json"/"deep"/"er")


# --- the report --------------------------------------------------------------------------------


def test_order_and_learning_curves(runs, tmp_path):
    titles = [section.title for section in report_sections(runs)]
    assert titles[0] == "Results" and titles.index(f"Rates: {evaluations(runs)[0].label}") < titles.index("Cell by cell")
    assert "Learning curves" not in titles
    runs[0].history = pd.concat([runs[0].history]*4, ignore_index=True)
    assert "Learning curves" in [section.title for section in report_sections(runs)]
    page = (write_results(runs, tmp_path/"out")/"report.html").read_text()
    assert "width=device-width" in page and page.count('<div class="wide"><img') == page.count("<img") > 4


def test_what_a_reader_looks_for_comes_first(runs):
    "On a phone the first columns are the only ones in view; none is lost"
    table = report_sections(runs)[0].table
    assert list(table)[:4] == ["model", "test_corr", "cc_max", "cc_norm"]
    assert sorted(table) == sorted(format_table(results_table(runs)))


def test_a_text_that_all_rates_share_is_said_once(runs):
    texts = [section.text for section in report_sections(runs) if section.title.startswith("Rates")]
    assert "single answer" in texts[0] and set(texts[1:]) == {"As above."}


def test_peaks_stay_below_the_correlation(runs):
    fig = report.rates_figure(runs[0])
    fig.canvas.draw()
    for ax in fig.axes:
        label = ax.texts[0].get_window_extent()
        bottom = ax.transData.inverted().transform(label.p0)[1]
        assert max(np.nanmax(line.get_ydata(), initial=0) for line in ax.lines) <= bottom*1.02


def test_tick_labels_do_not_collide(runs):
    fig = report.rates_figure(runs[0])
    fig.canvas.draw()
    boxes = [text.get_window_extent() for ax in fig.axes[-3:] for text in ax.get_xticklabels() if text.get_text() and text.get_visible()]
    boxes.sort(key=lambda box: box.x0)
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))


def test_ceilings_fit_the_data(runs):
    fig = report.ceilings_figure(runs)
    cc_max = Evaluation(runs[0], "").cells.cc_max
    lo, hi = fig.axes[0].get_xlim()
    assert lo > cc_max.min() - .05 and hi < cc_max.max() + .05


def test_very_many_cells(runs, tmp_path):
    "A figure is no larger, and names are not listed by the hundred"
    rec = runs[0].recording
    n = 200
    for part in (rec.train, rec.test):
        part.rates = np.tile(part.rates, (1, n//4))
        part.counts = np.tile(part.counts, (1, n//4))
    rec.test.repeats = np.tile(rec.test.repeats, (1, 1, n//4))
    rec.n_cells, rec.cells, rec.cell_names = n, list(range(n)), [f"cell{i}" for i in range(n)]
    rec.train.rates[1000:, 10:] = np.nan
    run = runs[0]
    run.model.n_units = n
    whole = Run(run.path)
    whole.recording = Recording(run.config["data"])
    parts = {part: p._replace(rates=np.tile(p.rates, (1, n//4))) for part, p in evaluate(whole).items()}
    evaluation._memory.setdefault(run, {})["predicted_rates", False, 20_000] = {part: p.rates for part, p in parts.items()}
    for figure in (report.rates_figure(run), report.cells_figure([run]), report.ceilings_figure([run])):
        width, height = figure.get_size_inches()
        assert width <= 14 and height < 26
    assert len(report.rates_figure(run).axes) == 90
    said = notes([run])
    assert all(len(sentence) < 700 for sentence in said) and any("and 178 more" in sentence for sentence in said)


# --- steady cells ------------------------------------------------------------------------------


def part_of(rates, hz=10.): return Part(None, np.asarray(rates, np.float32), hz=hz)


def counts(true_rate, seed=0, hz=10.): return np.random.default_rng(seed).poisson(true_rate/hz)*hz


def test_steadiness():
    "Against what was put in: died, lost, drifting up, drifting down, well"
    t = np.arange(6000)
    pictures = np.exp(.5*np.random.default_rng(1).normal(size=600)).repeat(10)
    rates = 6*pictures[:, None]*np.column_stack([t < 3500, np.ones(6000), 1 + 3*t/6000, 1/(1 + 5*t/6000), np.ones(6000)])
    recorded = counts(rates)
    recorded[3000:, 1] = np.nan
    table = pd.DataFrame(steadiness(part_of(recorded)))
    assert table.unsteady.tolist() == ["fell silent", "", "drifts", "drifts", ""]
    assert table.recorded.tolist() == [1, .5, 1, 1, 1]
    first, last = np.nanmean(recorded[:2000], 0), np.nanmean(recorded[4000:, [0, 2, 3, 4]], 0)
    np.testing.assert_allclose(table.rate_first, first, rtol=1e-5)
    np.testing.assert_allclose(table.rate_last.drop(1), last, rtol=1e-5)


def test_steadiness_of_little():
    "A movie of a second or less, a cell that never fires"
    for n in (1, 3, 10, 35):
        table = pd.DataFrame(steadiness(part_of(np.zeros((n, 2)))))
        assert table.unsteady.tolist() == ["", ""]


def test_a_movie_that_becomes_duller_is_no_drift():
    "All cells fire by a fifth less"
    rates = np.full((6000, 5), 8.)
    rates[4000:] *= .8
    assert not any(pd.DataFrame(steadiness(part_of(counts(rates)))).unsteady)


def test_printable():
    assert printable("cell 01é日") == "cell 01é日" and "\x1b" not in printable("\x1b]0;title\x07") and printable("\udcff").encode()


def test_how_long_and_on_what(tmp_path):
    "The table's company says how long each model was trained, hidden limits too, and that a simulated retina is one"
    from retina_nb.results import about_runs
    from retina_nb.simulation import simulate_recording
    rec = Recording(simulate_recording(tmp_path/"simulated.h5", seconds=10, test_seconds=5, cells=2))
    run = train_run(rec, "adaptive", tmp_path/"run", history=8, epochs=1, settings=dict(subunits=2, n_basis=4, core=None), progress=False, limit_train_batches=3)
    trained, simulated = about_runs([run])
    assert trained == "Trained for: AdaptiveSubunits 1 epoch of at most 3 batches each."
    assert "simulated" in simulated and "parts that AdaptiveSubunits has, too" in simulated and "chapter 17" in simulated


def test_no_name_is_broken_at_80_columns(monkeypatch):
    "Negative numbers are wider; the gaps give way before a name does"
    from retina_nb import results
    row = dict(model="LinearStackedBNCNN", test_corr=-.123, test_corr_lo=-.234, test_corr_hi=-.012, cc_max=.885, cc_norm=-.5, bits_per_spike=-1.234, seconds=1234.)
    monkeypatch.setattr(results, "results_table", lambda runs: pd.DataFrame([row, row | dict(model="AdaptiveSubunits")]))
    lines = short_table([], 80).splitlines()
    assert len(lines) == 4 and lines[2].startswith("LinearStackedBNCNN ") and max(map(len, lines)) <= 80
