"Tables, reports and commands: the whole way, odd recordings, mistakes"
import json
import subprocess

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import forks
from retina_nb import report
from retina_nb.bncnn import BNCNN, hyperparams
from retina_nb.commands import retina_demo, retina_results
from retina_nb.data import InputError, Recording, write_recording
from retina_nb.report import Section, html_report, rates_figure, summary_sentence, write_results
from retina_nb.results import (beside_published, cells_table, columns, differences, evaluate, evaluations, pearson,
                               results_table)
from retina_nb.stacked import LinearStackedBNCNN
from retina_nb.training import fit, load_run, predict, train_run


def record(path, seed=0, repeats=3, test=500, cells=3, frames=3000):
    "Half a minute of noise, cells that follow a pixel each, and a last one that fires at random"
    rng = np.random.default_rng(seed)

    def movie(n): return rng.integers(0, 256, (n, 12, 12), dtype=np.uint8)

    def spikes(m):
        rate = np.maximum(0, 128. - np.roll(m[:, 3, 2:2 + cells], 2, 0))/2
        rate[:, -1] = 15
        n = rng.poisson(rate/100)
        return [np.repeat(np.arange(len(k)), k)/100 for k in n.T]

    train, shown = movie(frames), movie(test)
    return write_recording(path, train, spikes(train), test_stimulus=shown, test_spikes=[spikes(shown) for _ in range(repeats)])


def tiny(rec, out, epochs=1, history=4, **more):
    torch.manual_seed(0)
    model = BNCNN(**{**hyperparams, "img_shape": [history, 12, 12], "chans": [2, 2], "ksizes": [3, 3], "n_units": rec.n_cells, "softplus": True})
    return fit(model, rec, out, epochs=epochs, batch_size=64, lr=5e-3, progress=False, **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rec = Recording(record(folder/"a"/"noise.h5"))
    one = tiny(rec, folder/"one", epochs=2)
    return [one, fit(LinearStackedBNCNN(one.model), rec, folder/"two", epochs=1, batch_size=64, progress=False), tiny(rec, folder/"three", split="random", history=1)]


def shell(folder, command, *args):
    "How a command ends there, and what it prints"
    process = forks.shell(command, *args, folder=folder, cwd=folder)
    said = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, *said)


def test_command(runs, tmp_path):
    p = shell(tmp_path, "retina_results", *(r.path for r in runs), runs[0].path, "--out", "deep/er")
    assert p.returncode == 0 and p.stderr == "", p.stderr
    out = tmp_path/"deep"/"er"
    assert {f.name for f in out.iterdir()} == {"results.csv", "cells.csv", "results.md", "report.html", "figures"}
    table = pd.read_csv(out/"results.csv")
    assert list(table) == list(columns) and len(table) == 3 and table.test_corr.is_monotonic_decreasing
    assert set(table.model) == {"BNCNN (one)", "BNCNN (three)", "LinearStackedBNCNN"}
    assert set(table.split) == {"blocked", "random"} and set(table.history) == {1, 4}
    cells = pd.read_csv(out/"cells.csv")
    assert len(cells) == 9 and set(cells.cell) == {"cell01", "cell02", "cell03"} and not cells[cells.cell == "cell03"].signal.any()
    for name in ("report.html", "results.md"):
        text = (out/name).read_text()
        assert "cell03" in text and all(m in text for m in table.model) and all(line.split(" ")[0] in text for line in columns.values())
    assert "://" not in (out/"report.html").read_text()
    assert "test_corr" in p.stdout and "deep/er/report.html" in p.stdout


def test_numbers(runs):
    run, table = runs[0], results_table(runs).set_index("model")
    row, rec = table.loc["BNCNN (one)"], runs[0].recording
    yhat = predict(run, rec.test.stimulus)
    assert np.isnan(yhat[:3]).all()
    r = [np.corrcoef(rec.test.rates[3:, i], yhat[3:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(row.test_corr, np.mean(r), rtol=1e-5)
    assert row.test_corr_lo < row.test_corr < row.test_corr_hi
    every = predict(run, rec.train.stimulus, rec.blocks)
    for name, index in zip(("train_corr", "val_corr"), run.split):
        np.testing.assert_allclose(row[name], pearson(rec.train.rates[index], every[index]).mean(), rtol=1e-4)
    assert row.params == sum(p.numel() for p in run.model.parameters()) and row.epochs == 2 and row.seconds > 0
    cells = cells_table([run])
    used = cells[cells.signal]
    assert used.cell.tolist() == ["cell01", "cell02"]
    signal = results_table([run], signal_only=True).iloc[0]
    np.testing.assert_allclose([signal.test_corr, signal.cc_norm, signal.feve], [used.test_corr.mean(), used.cc_norm.mean(), used.feve.mean()])
    d = differences(runs)
    assert len(d) == 2 and (d.against == table.index[0]).all() and (d.lo <= d.difference).all() and (d.difference <= d.hi).all()
    assert list(beside_published(runs).model) == ["BNCNN", "LinearStackedBNCNN", "CNNBiLSTM"]


def test_few_training_frames_are_enough(runs):
    run = load_run(runs[0].path)
    index, y, yhat = evaluate(run, train_frames=100)["train"]
    assert len(index) == len(y) == len(yhat) == 100 and np.isin(index, run.split[0]).all() and index[-1] == run.split[0][-1]
    few = evaluations([run], train_frames=100)
    rates_figure(few[0])                                            # predicts what it shows
    assert results_table(few).train_corr[0] == pytest.approx(pearson(y, yhat).mean())
    assert len(evaluate(run)["train"].index) == len(run.split[0]) and len(evaluate(run, 100)["train"].index) == 100


def test_nothing_is_predicted_twice(runs, tmp_path, monkeypatch):
    "Whatever is asked for, in whatever order, of runs or of evaluations"
    some = [load_run(run.path) for run in runs]
    table = results_table(some)
    monkeypatch.setattr("retina_nb.evaluation.predict", lambda *args: pytest.fail("predicted again"))
    write_results(some, tmp_path/"out")
    write_results(evaluations(some), tmp_path/"out")
    assert results_table(some[::-1]).test_corr.tolist() == table.test_corr.tolist()
    assert not {"_evaluated", "_scored"} & set(vars(some[0]))


def test_several_recordings(runs, tmp_path):
    other = tiny(Recording(record(tmp_path/"other.h5", seed=1, cells=4)), tmp_path/"one")
    table = results_table([other, runs[0]])
    assert table.model.tolist() == ["BNCNN, other", "BNCNN, noise"]
    assert len(cells_table([other, runs[0]])) == 7 and differences([other, runs[0]]).empty
    write_results([other, runs[0]], tmp_path/"out")


def test_counts_one_repeat_short_movie(tmp_path):
    "Models of spike counts; a test movie shown once; one too short for blocks of a second"
    rec = Recording(record(tmp_path/"counts.h5"), response="binned")
    assert rec.test.unit == "firing_rate_10ms"
    counting, rating = tiny(rec, tmp_path/"counts"), tiny(Recording(rec.path), tmp_path/"rates")
    rated = evaluate(rating)["test"]
    evaluate(counting)["test"] = rated._replace(recorded=rec.test.rates, rates=rated.rates/rec.hz)    # the same prediction, in spikes per frame
    units = ["cc_norm", "feve", "bits_per_spike"]
    np.testing.assert_allclose(results_table([counting])[units], results_table([rating])[units], rtol=1e-5)
    once = tiny(Recording(record(tmp_path/"once.h5", repeats=1, test=150)), tmp_path/"once")
    row = results_table([once]).iloc[0]
    assert np.isfinite([row.test_corr, row.bits_per_spike]).all()
    assert np.isnan(row[["cc_max", "cc_norm", "feve", "oracle", "test_corr_lo", "test_corr_hi"]].astype(float)).all()
    write_results([once], tmp_path/"out")
    assert "–" in (tmp_path/"out"/"results.md").read_text()


def test_written_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    write_results(runs[:1], tmp_path/"out")
    before = {f: f.read_bytes() for f in (tmp_path/"out").rglob("*") if f.is_file()}
    (tmp_path/"out"/"mine.txt").write_text("kept")
    monkeypatch.setattr(report, "rates_figure", lambda run: 1/0)
    for out in (tmp_path/"out", tmp_path/"new"):
        with pytest.raises(ZeroDivisionError): write_results(runs, out)
    assert not (tmp_path/"new").exists() and all(f.read_bytes() == b for f, b in before.items())
    assert {f.name for f in (tmp_path/"out").iterdir()} == {"results.csv", "cells.csv", "results.md", "report.html", "figures", "mine.txt"}


def one_line(e): return "\n" not in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize("what", ["no folder", "no run", "unfinished", "moved", "changed", "out is a file"])
def test_mistakes(runs, tmp_path, what):
    run, args, out = tmp_path/"run", [tmp_path/"run"], tmp_path/"results"
    if what in ("moved", "changed", "unfinished"):
        rec = record(tmp_path/"own.h5")
        tiny(Recording(rec), run)
        if what == "moved": rec.rename(tmp_path/"away.h5")
        if what == "changed": record(rec, seed=5)
        if what == "unfinished": [f.unlink() for f in run.iterdir() if f.suffix in (".pth", ".ckpt")]
    if what == "no run": run.mkdir()
    if what == "out is a file": args = [runs[0].path]; out.write_text("mine")
    words = {"no folder": "run", "no run": "config.json", "unfinished": "weights", "moved": "own.h5", "changed": "changed", "out is a file": "file"}[what]
    with pytest.raises(InputError, match=words) as e: retina_results(args, out=str(out))
    assert one_line(e) and not out.is_dir()


def test_mistakes_in_the_shell(tmp_path):
    p = shell(tmp_path, "retina_results", "none", "nowhere", "--out", "results")
    assert p.returncode == 2 and p.stdout == "" and p.stderr.count("\n") == 1 and "none" in p.stderr and "Traceback" not in p.stderr
    assert not (tmp_path/"results").exists()


def test_demo_on_own_recording(tmp_path, capsys):
    "The reference project's protocol, for an epoch; typed again it goes on where it was"
    rec = record(tmp_path/"own.h5", frames=1000)
    for _ in range(2): retina_demo(data=str(rec), protocol="reference", epochs=1, out=str(tmp_path/"demo"))
    assert "report.html" in (said := capsys.readouterr().out) and "CNNBiLSTM" in said
    table = pd.read_csv(tmp_path/"demo"/"results.csv")
    assert set(table.model) == {"BNCNN", "LinearStackedBNCNN", "CNNBiLSTM"} and (table.history == 1).all() and (table.epochs == 1).all()
    config = json.loads((tmp_path/"demo"/"bncnn"/"config.json").read_text())
    assert config["split"] == "random" and config["batch_size"] == 32 and config["scale"] == "raw" and config["hyperparams"]["chans"] == [32, 64]


def test_demo_mistakes(tmp_path):
    for mistake, words in ((dict(protocol="hopeful"), "honest or reference"), (dict(data="none.h5"), "none.h5"), (dict(seconds=0), "seconds"), (dict(epochs=-1), "epochs")):
        with pytest.raises(InputError, match=words) as e: retina_demo(out=str(tmp_path/"demo"), **mistake)
        assert one_line(e) and not (tmp_path/"demo").exists()


@pytest.mark.slow
def test_demo(tmp_path):
    p = shell(tmp_path, "retina_demo", "--seconds", 10, "--epochs", 1)
    assert p.returncode == 0, p.stderr
    assert (tmp_path/"runs"/"demo"/"report.html").exists()


def test_names_are_escaped(runs):
    page = html_report([Section("<b>", "a < b", pd.DataFrame({"<u>": ["<i>"]}))], {}, ["x & y"])
    assert "<b>" not in page and "<i>" not in page and "<u>" not in page and "x &amp; y" in page


def test_nothing_is_cut_in_the_page():
    long = "GLM with spike history, 15-10-07 (" + "x"*200 + ")"
    page = html_report([Section("Results", "", pd.DataFrame({"model": [long], "test_corr": ["0.5 [0.4, 0.6]"]}))], {}, [])
    assert long.replace(", ", ",&nbsp;") in page and "<th>test_<wbr>corr</th>" in page and "<td>0.5<br>[0.4,&nbsp;0.6]</td>" in page


def test_no_runs(tmp_path):
    with pytest.raises(InputError, match="at least one"): write_results([], tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_leak(tmp_path):
    p = shell(tmp_path, "retina_leak", "--data", record(tmp_path/"noise.h5"), "--history", 1, "--epochs", 1, "--set", "chans=[2,2] ksizes=[3,3]", "--out", "leak")
    assert p.returncode == 0, p.stderr
    table = pd.read_csv(tmp_path/"leak/leak.csv")
    assert table.split.tolist() == ["random", "stratified", "blocked"] and (table.val_corr_lo <= table.val_corr_hi).all()
    np.testing.assert_allclose(table.gap, table.val_corr - table.test_corr)
    assert (tmp_path/"leak/leak.png").stat().st_size > 1000 and "leak.csv" in p.stdout
    p = shell(tmp_path, "retina_leak", "--data", "nowhere.h5")
    assert p.returncode == 2 and p.stderr.startswith(f"retina_leak: {tmp_path/'nowhere.h5'}")


def test_glm_with_and_without_spike_history(tmp_path):
    rec = Recording(record(tmp_path/"noise.h5"))
    runs = [train_run(rec, "glm", tmp_path/"glm", history=6, progress=False), train_run(rec, "ln", tmp_path/"ln", history=6, progress=False)]
    table = results_table(runs)
    assert table.model.tolist()[-1] == "GLM with spike history" and set(table.model) == {"GLM", "LN", "GLM with spike history"}
    assert not differences(runs).model.str.contains("spike").any() and "GLM with spike history" not in summary_sentence(runs)
    told, glm, counts = evaluations(runs)[-1], runs[0].model, rec.test.repeat_counts
    assert told.knows_spikes and told.run is runs[0]
    np.testing.assert_allclose(counts.mean(0), rec.test.counts, atol=1e-6)
    for t in (5, 17, 444):  # one window of one repeat after the other
        x = runs[0].scale(torch.from_numpy(rec.test.stimulus[None, t - 5:t + 1]))
        past = [np.pad(c, ((40, 0), (0, 0)))[None, t:t + 40] for c in counts]
        expected = [glm.with_history(x, torch.from_numpy(p)).detach().numpy()[0] for p in past]
        np.testing.assert_allclose(told.trials.rates[:, t], expected, rtol=2e-3, atol=1e-2)
        np.testing.assert_allclose(told.predictions["test"].rates[t], np.mean(expected, 0), rtol=2e-3, atol=1e-2)
    flat, rates = counts.reshape(-1, 3), told.trials.rates.reshape(-1, 3)/rec.hz
    known = np.isfinite(rates).all(1)
    n, p, mean = flat[known], rates[known], flat[known].mean(0)
    assert table.bits_per_spike.iloc[-1] == pytest.approx(((n*np.log2(p/mean)).sum(0) - (p - mean).sum(0)/np.log(2)).dot(1/n.sum(0))/3, abs=1e-5)


def test_glm_where_the_spikes_of_repeats_are_unknown(tmp_path):
    path = record(tmp_path/"noise.h5")
    with h5py.File(path, "r+") as f:
        for cell in f["test/repeats"]: f[f"test/repeats/{cell}"][:] *= 1.1
        for response in f["test/response"]: f[f"test/response/{response}"][:] *= 1.1
    table = results_table([train_run(Recording(path), "glm", tmp_path/"glm", history=6, progress=False)]).set_index("model")
    assert np.isnan(table.test_corr["GLM with spike history"]) and table.val_corr.notna().all() and table.test_corr["GLM"] > 0
    write_results([load_run(tmp_path/"glm")], tmp_path/"out")
