"What the notebook can't show in a cell: stopping and resuming through the command, blocks, unusual recordings, several seeds"
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import record_noise
from retina_nb.commands import retina_predict, retina_sweep, retina_train
from retina_nb.bncnn import check_model
from retina_nb.data import Frames, Recording
from retina_nb.results import results_table
from retina_nb.tcn import TCN
from retina_nb.training import load_run, load_runs, predict, train_run

small = dict(channels=4, layers=2)


@pytest.fixture(scope="module")
def recording(tmp_path_factory): return record_noise(tmp_path_factory.mktemp("tcn")/"noise.h5", (12, 12))


def test_stop_resume_predict(recording, tmp_path):
    "A run that was prolonged is the run that was not stopped; predictions come from the folder alone"
    args = dict(data=str(recording), model="tcn", history=6, accelerator="cpu", set="channels=4 layers=2")
    retina_train(**args, epochs=4, out=str(tmp_path/"whole"))
    retina_train(**args, epochs=2, out=str(tmp_path/"stopped"))
    retina_train(**args, epochs=4, out=str(tmp_path/"stopped"), resume=True)
    a, b = load_run(tmp_path/"whole"), load_run(tmp_path/"stopped")
    pd.testing.assert_frame_equal(a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), check_exact=True)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(x, y)
    assert a.config["lr"] == 3e-3 and a.model_name == "TCN"

    retina_predict(run=str(tmp_path/"whole"), data=str(recording), part="train", out=str(tmp_path/"rates.npz"))
    rates = np.load(tmp_path/"rates.npz")["rates"]
    assert np.flatnonzero(np.isnan(rates).all(1)).tolist() == [*range(5), *range(750, 755)]
    assert np.isfinite(results_table([a]).test_corr[0])


def test_seeds_and_sweep(recording, tmp_path):
    args = dict(data=str(recording), model="tcn", history=6, epochs=1)
    retina_train(**args, accelerator="cpu", set="channels=4 layers=2", seeds="0,1", out=str(tmp_path/"seeds"))
    table = results_table(load_runs(tmp_path/"seeds"))
    assert len(table) > 1 and table.model.str.startswith("TCN").all()
    retina_sweep(**args, space="channels=2,4 layers=1", search="grid", out=str(tmp_path/"sweep"))
    assert len(list((tmp_path/"sweep").rglob("model.pth"))) == 2


def test_blocks_and_order(recording, tmp_path):
    "A prediction does not depend on what else is predicted, nor on the block before"
    rec = Recording(recording)
    run = train_run(rec, "tcn", tmp_path/"run", history=6, settings=small, epochs=1, progress=False)
    movie, blocks = rec.train.stimulus, rec.blocks
    whole = predict(run, movie, blocks)
    some = np.array([7, 300, 301, 760, 1499])
    part = predict(run, movie, blocks, some)
    np.testing.assert_allclose(part[some], whole[some], rtol=1e-4)
    assert np.isnan(np.delete(part, some, 0)).all()
    np.testing.assert_allclose(predict(run, movie[750:])[5:], whole[755:], rtol=1e-4)
    frames = Frames(rec.train, np.arange(5, 700)[::-1], 6, run.scale)
    np.testing.assert_allclose(run.model.predict_movie(frames), whole[frames.index], rtol=1e-4)


def test_later_frames_change_nothing(recording, tmp_path):
    rec = Recording(recording)
    run = train_run(rec, "tcn", tmp_path/"run", history=6, settings=small, epochs=1, progress=False)
    movie = rec.test.stimulus.copy()
    before = predict(run, movie)
    movie[250:] = 255 - movie[250:]
    after = predict(run, movie)
    np.testing.assert_array_equal(after[:250], before[:250])
    assert not np.allclose(after[250:], before[250:])


def test_from_disk(recording, tmp_path):
    "A movie that is read piece by piece gives the same run"
    options = dict(history=6, settings=small, epochs=1, progress=False, accelerator="cpu")
    runs = [train_run(Recording(recording, in_memory=in_memory), "tcn", tmp_path/str(in_memory), **options) for in_memory in (True, False)]
    for x, y in zip(*(run.model.state_dict().values() for run in runs)): torch.testing.assert_close(x, y)


@pytest.mark.parametrize("shape, grid", [((50, 50), [11, 11]), ((1, 1), [1, 1]), ((4, 4), [1, 1]), ((1, 40), [1, 9]), ((12, 7), [2, 1])])
def test_grid(shape, grid):
    model = TCN(img_shape=(40, *shape))
    assert model.grid == grid and model.context == 124
    assert len(model.space) == (48 if grid == [1, 1] else 16)


@pytest.mark.parametrize("history", [1, 28, 29, 60])
def test_contract(history): assert check_model(TCN(img_shape=(history, 9, 10), n_units=2, layers=2, channels=16)) < .5


@pytest.mark.parametrize("kind, history", [
    (dict(shape=(1, 1), cells=1), 5),
    (dict(shape=(1, 40)), 1),
    (dict(shape=(8, 10), still=True), 8),
    (dict(shape=(60, 45), frames=700), 10),
    (dict(shape=(6, 6), hz=30), 300)])
def test_unusual_recordings(tmp_path, kind, history):
    rec = Recording(record_noise(tmp_path/"r.h5", **kind))
    run = train_run(rec, "tcn", tmp_path/"run", history=history, settings=small, epochs=2, progress=False)
    rates = predict(run, rec.test.stimulus)
    assert np.isfinite(rates[history - 1:]).all() and (rates[history - 1:] >= 0).all()


@pytest.mark.parametrize("options", [dict(split="random"), dict(split="stratified"), dict(scale="zscore"), dict(precision="bf16-mixed", accelerator="cpu")], ids=str)
def test_splits_and_precision(recording, tmp_path, options):
    run = train_run(Recording(recording), "tcn", tmp_path/"run", history=6, settings=small, epochs=1, progress=False, **options)
    assert np.isfinite(run.results["valid_loss"])
