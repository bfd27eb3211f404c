"Runs on the Stanford sessions beside the papers: the right cells meet, and the numbers are those of an independent computation"
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from retina_nb.bncnn import BNCNN, hyperparams
from retina_nb.data import Recording, well_isolated
from retina_nb.report import report_sections, write_results
from retina_nb.results import beside_papers, papers_cells, papers_pairs, results_table
from retina_nb.training import fit, predict

root = Path(__file__).resolve().parents[1]
MEANS = {("naturalscene", "CNN"): .726, ("naturalscene", "CONVGC"): .713, ("naturalscene", "DRONE"): .689,
         ("whitenoise", "CNN"): .722, ("whitenoise", "CONVGC"): .710, ("whitenoise", "DRONE"): .652}


def train(rec, out):
    torch.manual_seed(0)
    model = BNCNN(**{**hyperparams, "img_shape": [2, 50, 50], "chans": [2, 2], "ksizes": [9, 5], "softplus": True, "n_units": rec.n_cells})
    return fit(model, rec, out, epochs=1, batch_size=256, progress=False)


def test_published_cells():
    "26 cells under two movies and three models, those that are called well isolated"
    table = papers_cells()
    assert len(table) == 26*2*3 and not table.duplicated(["session", "stimulus", "cell", "model"]).any()
    for (session, _, _), cells in table.groupby(["session", "stimulus", "model"]): assert sorted(cells.cell) == well_isolated[session]
    assert table.groupby(["stimulus", "model"]).test_corr.mean().round(3).to_dict() == MEANS


@pytest.mark.parametrize("session, movie, chosen, shared", [
    ("15-10-07", "whitenoise", None, [0, 1, 2, 3, 4]),
    ("15-11-21a", "naturalscene", [13, 0, 6], [6, 13]),
    ("15-11-21b", "naturalscene", "cell26,cell03,cell02,cell01", [0, 1, 25]),
])
def test_numbers(sessions, tmp_path, session, movie, chosen, shared):
    "Against the file itself, pandas and scipy"
    rec = Recording(sessions[session, movie], cells=chosen)
    run = train(rec, tmp_path/"run")
    rates = predict(run, rec.test.stimulus)[1:]    # a window has two frames
    with h5py.File(rec.path) as f: recorded = f["test/response/firing_rate_10ms"][:, 1:len(rec.test)]
    ours = pd.Series({cell: np.corrcoef(recorded[cell], rates[:, i])[0, 1] for i, cell in enumerate(rec.cells)})
    theirs = pd.read_csv(root/"retina_nb"/"papers_cells.csv", dtype={"session": str})
    theirs = theirs[(theirs.session == session) & (theirs.stimulus == movie)]
    table = beside_papers([run])
    assert table["published model"].tolist() == ["CNN", "CONVGC", "DRONE"] and set(table.cells) == {len(shared)}
    for row in table.itertuples():
        published = theirs[theirs.model == row[2]].set_index("cell").test_corr[shared]
        difference = ours[shared] - published
        np.testing.assert_allclose(row[4:7], [ours[shared].mean(), published.mean(), difference.mean()], atol=1e-5)
        ends = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=20_000, vectorized=True).confidence_interval
        np.testing.assert_allclose([row.lo, row.hi], ends, atol=.05*difference.std() + 1e-3)


def pairs(path, **options):
    "Of an evaluation that gives every cell its index as correlation"
    rec = Recording(path, **options)
    return papers_pairs(SimpleNamespace(run=SimpleNamespace(recording=rec), cells=pd.DataFrame({"test_corr": rec.cells})))


def test_which_cells(sessions, tmp_path):
    "Those that both have, by their index in the file; none for other cells, files, sessions and smoothings"
    path = sessions["15-11-21a", "naturalscene"]
    assert pairs(path).ours.to_dict() == pairs(path, cells="well-isolated").ours.to_dict() == {6: 6, 10: 10, 12: 12, 13: 13}
    assert pairs(path, cells=[13, 0, 6]).ours.to_dict() == {6: 6, 13: 13}
    assert not len(pairs(path, cells=[0])) and not len(pairs(path, response="firing_rate_20ms"))
    for name in ("15-11-21a/other.h5", "mine/naturalscene.h5"):
        (tmp_path/name).parent.mkdir()
        shutil.copy(path, tmp_path/name)
        assert not len(pairs(tmp_path/name))


def test_report(sessions, tmp_path):
    "A session and another recording in one report: rows for the session alone; a single cell has no interval"
    session, mine = sessions["15-11-21a", "naturalscene"], tmp_path/"mine.h5"
    shutil.copy(session, mine)
    runs = [train(Recording(path, cells=[6, 4]), tmp_path/path.stem) for path in (session, mine)]
    out = write_results(runs, tmp_path/"results")
    table = pd.read_csv(out/"papers.csv")
    assert table.model.tolist() == ["BNCNN, 15-11-21a"]*3 and set(table.cells) == {1}
    assert np.isfinite(table.difference).all() and table[["lo", "hi"]].isna().all(axis=None)
    assert (out/"figures"/"papers.png").exists() and len(results_table(runs)) == 2
    for name in ("report.html", "results.md"):
        text = (out/name).read_text()
        assert "Beside the papers, cell by cell" in text and ".382 and .416" in text and "is not about these 26 cells" in text
    assert "papers" not in [section.figure for section in report_sections(runs[1:])]


def test_in_the_wheel(tmp_path):
    "The table is part of the built package"
    source = tmp_path/"source"
    source.mkdir()
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE", "MANIFEST.in", "pyproject.toml"): shutil.copy(root/name, source)
    shutil.copytree(root/"retina_nb", source/"retina_nb", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source], capture_output=True, text=True)
    if "setuptools" in done.stderr: pytest.skip("setuptools is not installed here")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel: assert "retina_nb/papers_cells.csv" in wheel.namelist()
