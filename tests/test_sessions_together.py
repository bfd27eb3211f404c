"Several recordings that train one core; several seeds that predict together"
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from retina_nb.data import InputError, Recording
from retina_nb.results import seeds_table
from retina_nb.commands import retina_predict, retina_results, retina_train
from retina_nb.training import load_run, load_runs, predict
from conftest import record_noise
from test_training import shell


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Frames of two sizes, other numbers of cells, other lengths"
    folder = tmp_path_factory.mktemp("two")
    return record_noise(folder/"A.h5", (12, 12)), record_noise(folder/"B.h5", (8, 10), cells=3, frames=2600)


ARGS = dict(model="adaptive", set="core=8 subunits=4", history=6, accelerator="cpu")


@pytest.fixture(scope="module")
def joint(two, tmp_path_factory):
    out = tmp_path_factory.mktemp("joint")/"run"
    retina_train(data=",".join(map(str, two)), epochs=2, out=str(out), **ARGS)
    return out


def test_one_core(two, joint, tmp_path):
    a, b = runs = load_runs(joint)
    assert [r.name for r in runs] == ["A", "B"] and [r.model.n_units for r in runs] == [2, 3]
    assert torch.equal(a.model.basis, b.model.basis) and not torch.equal(a.model.basis, type(a.model)(**a.config["hyperparams"]).basis)
    assert [len(r.history) for r in runs] == [2, 2] and a.results["best_epoch"] == b.results["best_epoch"]
    for path, run in zip(two, runs):
        retina_predict(run=str(joint), data=str(path), out=str(tmp_path/"rates.npz"))
        rec = Recording(path)
        np.testing.assert_array_equal(np.load(tmp_path/"rates.npz")["rates"], predict(run, rec.test.stimulus, rec.test.blocks))
    retina_results([str(joint)], out=str(tmp_path/"results"))
    assert sorted(pd.read_csv(tmp_path/"results"/"results.csv").model) == ["AdaptiveSubunits, A", "AdaptiveSubunits, B"]


def test_stopped_and_resumed(two, joint, tmp_path):
    data = ",".join(map(str, two))
    retina_train(data=data, epochs=1, out=str(tmp_path/"run"), **ARGS)
    retina_train(data=data, epochs=2, out=str(tmp_path/"run"), resume=True, **ARGS)
    for x, y in zip(load_runs(joint), load_runs(tmp_path/"run")):
        pd.testing.assert_frame_equal(x.history.drop(columns="seconds"), y.history.drop(columns="seconds"), check_exact=True)
        for v, w in zip(x.model.state_dict().values(), y.model.state_dict().values()): assert torch.equal(v, w)


def test_ctrl_c(two, tmp_path):
    p = shell("retina_train", "--data", ",".join(map(str, two)), "--model", "adaptive", "--history", 6, "--accelerator", "cpu", "--epochs", 1000, "--patience", 0, "--out", tmp_path/"run", folder=tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path/"run"/"last.ckpt").exists():
        assert p.poll() is None and time.monotonic() < until, p.communicate()
        time.sleep(.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate()
    assert p.returncode == 130 and "--resume goes on" in err and "Traceback" not in err
    with pytest.raises(InputError, match="train with --resume"): load_runs(tmp_path/"run")[0].model


@pytest.mark.parametrize("args, words", [
    (dict(model="bncnn"), "expected one recording for BNCNN, which has no core"),
    (dict(model="stacked"), "expected one recording for LinearStackedBNCNN"),
    (dict(model="ln"), "expected one recording for LN"),
    (dict(data="A.h5,none.h5"), "none.h5: expected a recording"),
])
def test_mistakes(two, tmp_path, args, words):
    data = args.get("data", "A.h5,B.h5").replace("A.h5", str(two[0])).replace("B.h5", str(two[1]))
    with pytest.raises(InputError, match=words): retina_train(**{**ARGS, "set": "", **args, "data": data}, out=str(tmp_path/"run"))
    assert not (tmp_path/"run").exists()


def test_other_frame_rates(two, tmp_path):
    record_noise(tmp_path/"C.h5", (6, 6), hz=50)
    with pytest.raises(InputError, match="one number of frames per second to share a core, found 50.0, 100.0"):
        retina_train(data=f"{two[0]},{tmp_path/'C.h5'}", out=str(tmp_path/"run"), **ARGS)


def test_folder_of_runs(two, joint, tmp_path):
    with pytest.raises(InputError, match="found a folder of runs; give one of them: A, B"): load_run(joint)
    other = record_noise(tmp_path/"other.h5", (12, 12), frames=1400)
    with pytest.raises(InputError, match="expected one run, or several that differ only in their seed"): retina_predict(run=str(joint), data=str(other), out=str(tmp_path/"r.npz"))


def test_ensemble_of_seeds(two, tmp_path):
    "The mean of the predictions of runs that differ only in their seed"
    retina_train(data=str(two[0]), epochs=1, seeds="0,1", out=str(tmp_path/"run"), **ARGS)
    runs, movie = load_runs(tmp_path/"run"), Recording(two[0]).test.stimulus
    retina_predict(run=str(tmp_path/"run"), data=str(two[0]), out=str(tmp_path/"rates.npz"))
    each = [predict(r, movie) for r in runs]
    np.testing.assert_allclose(np.load(tmp_path/"rates.npz")["rates"], (each[0] + each[1])/2, rtol=1e-6)
    assert not np.array_equal(each[0][5:], each[1][5:])
    row = seeds_table(runs).iloc[0]
    assert row.seeds == 2 and 0 < float(row["test_corr of their mean"]) < 1
