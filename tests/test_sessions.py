"The whole road on every published layout: train, predict, results"
import numpy as np
import pandas as pd

from retina_nb.results import columns
from retina_nb.commands import retina_predict, retina_results, retina_train
from retina_nb.training import load_run


def test_road(session, tmp_path):
    "One row with a ceiling, and predictions for every cell and every frame of the test movie"
    run = tmp_path/"run"
    retina_train(model="bncnn", data=str(session), history=3, set="chans=[2,2] start=random", epochs=1, batch_size=128, out=str(run), cells="well-isolated")
    retina_predict(run=str(run), data=str(session), out=str(tmp_path/"rates.npz"))
    retina_results([str(run)], out=str(tmp_path/"table"))
    rec, rates, table = load_run(run).recording, np.load(tmp_path/"rates.npz")["rates"], pd.read_csv(tmp_path/"table/results.csv")
    assert len(rec.blocks) == 6 and rates.shape == (len(rec.test.stimulus), rec.n_cells) and np.isnan(rates[:2]).all() and np.isfinite(rates[2:]).all()
    assert list(table) == list(columns) and len(table) == 1 and 0 < table.cc_max[0] < 1 and -1 < table.test_corr_lo[0] <= table.test_corr[0] <= table.test_corr_hi[0] < 1
    cells = pd.read_csv(tmp_path/"table/cells.csv")
    assert cells.cell.tolist() == rec.cell_names


def test_several_sessions(sessions, tmp_path):
    "Runs on different recordings in one table"
    runs = []
    for (session, movie), path in list(sessions.items())[:2]:
        retina_train(model="bncnn", history=1, data=str(path), set="chans=[2,2] start=random", epochs=1, batch_size=256, out=str(tmp_path/session), cells="0,1")
        runs.append(str(tmp_path/session))
    retina_results(runs, out=str(tmp_path/"table"))
    table = pd.read_csv(tmp_path/"table/results.csv")
    assert len(table) == 2 and all(any(s in m for m in table.model) for s, _ in list(sessions)[:2])
