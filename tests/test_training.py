"Training from the shell: whole road, mistakes, Ctrl-C, kill and resume"
import json
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from forks import console_script, fresh, shell

from retina_nb.data import InputError, Recording, write_recording
from retina_nb.models import models
from retina_nb.loop import TQDMProgressBar
from retina_nb.training import Progress, history_frames, load_class, load_run, predict, train_run
from retina_nb.commands import retina_train


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    "Half a minute of noise and two cells that follow it"
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("recording")

    def movie(n): return rng.integers(0, 256, (n, 12, 12), dtype=np.uint8)

    def spikes(m):
        rate = np.maximum(0, 128. - m[:, [3, 8], [4, 9]])/4
        n = rng.poisson(np.roll(rate, 2, 0)/100)
        return [np.repeat(np.arange(len(k)), k)/100 for k in n.T]

    train, test = movie(3000), movie(500)
    return write_recording(folder/"noise.h5", train, spikes(train), test_stimulus=test, test_spikes=[spikes(test) for _ in range(3)], blocks=[0, 1500])


SMALL = ["--model", "bncnn", "--set", "chans=[2,3] ksizes=[3,3]", "--history", 4, "--batch_size", 64, "--accelerator", "cpu"]


def test_train_predict(recording, tmp_path):
    script = console_script(tmp_path, "retina_train")
    p = fresh(script, "--data", recording, *SMALL, "--epochs", 2, "--out", tmp_path/"run")
    out, err = p.communicate()
    assert p.returncode == 0, err
    assert "validation correlation" in out and "Traceback" not in err
    run = load_run(tmp_path/"run")
    assert {p.name for p in run.path.iterdir()} == {"config.json", "best.ckpt", "last.ckpt", "model.pth", "history.csv", "training_results.json", "tensorboard"}
    assert run.config["blocks"] == [0, 1500] and run.config["history"] == 4 and len(run.history) == 2
    state = torch.load(run.path/"model.pth", weights_only=True)
    assert state["sequential.0.weight"].shape == (2, 4, 3, 3)

    p = shell("retina_predict", "--run", tmp_path/"run", "--data", recording, "--part", "train", "--out", tmp_path/"rates.npz", folder=tmp_path)
    out, err = p.communicate()
    assert p.returncode == 0, err
    saved = np.load(tmp_path/"rates.npz")
    assert saved["rates"].dtype == np.float32 and saved["rates"].shape == (3000, 2) and (saved["frames"] == np.arange(3000)).all()
    missing = np.isnan(saved["rates"]).all(1)
    assert np.flatnonzero(missing).tolist() == [0, 1, 2, 1500, 1501, 1502]  # no window reaches across the start of a block
    np.testing.assert_array_equal(saved["rates"], predict(run, Recording(recording).train.stimulus, [0, 1500]))


@pytest.mark.parametrize("args, words", [
    ([], "--data: expected"),
    (["--data", "nowhere.h5"], "nowhere.h5"),
    (["--data", "REC", "--model", "resnet"], "bncnn, cnnbilstm"),
    (["--data", "REC", "--split", "half"], "blocked, stratified or random"),
    (["--data", "REC", "--scale", "half"], "unit, zscore or raw"),
    (["--data", "REC", "--cells", "0,7"], "0 to 1"),
    (["--data", "REC", "--model", "bncnn", "--set", "chanels=[2,2]"], "chanels"),
    (["--data", "REC", "--set", "chans = [2,2]"], "--set: expected pairs"),
    (["--data", "REC", "--model", "bncnn", "--set", "ksizes=[15,15,3]"], "ksizes"),
    (["--data", "REC", "--model", "bncnn", "--set", "activ_fxn=Relu"], "Relu"),
    (["--data", "REC", "--epochs", 0], "epochs: expected a positive number"),
    (["--data", "REC", "--history", 2000], "history"),
    (["--data", "REC", "--response", "rate"], "firing_rate_20ms"),
    (["--data", "REC", "--model", "stacked", "--set", "base=nowhere"], "nowhere"),
    (["--data", "REC", "--accelerator", "abacus"], "devices"),
    (["--data", "REC", "--strategy", "tactics"], "tactics"),
])
def test_mistakes(recording, tmp_path, monkeypatch, args, words):
    "One line that names the mistake, and nothing left behind; Python callers get a InputError"
    monkeypatch.chdir(tmp_path)
    args = [str(recording) if a == "REC" else a for a in args]
    named = {k.removeprefix("--"): v for k, v in zip(args[::2], args[1::2])}
    with pytest.raises(InputError) as e: retina_train(**{**named, "out": "run"})
    assert words in str(e.value) and "\n" not in str(e.value)
    assert not any(tmp_path.iterdir())


def test_mistake_in_the_shell(recording, tmp_path):
    p = shell("retina_train", "--data", recording, "--batch-size", -1, "--out", tmp_path/"run", folder=tmp_path)
    out, err = p.communicate()
    assert p.returncode == 2 and err == "retina_train: batch_size: expected a positive number, found -1\n" and not (tmp_path/"run").exists()


def test_place_that_cannot_be_written(recording, tmp_path):
    "One line that names it, and no traceback"
    (tmp_path/"file").write_text("x")
    p = shell("retina_train", "--data", recording, *SMALL, "--epochs", 1, "--out", tmp_path/"file"/"run", folder=tmp_path)
    _, err = p.communicate()
    assert p.returncode == 2 and err.count("\n") == 1 and err.startswith(f"retina_train: {tmp_path/'file'}"), err


def wait_for_epoch(path, n, process, limit=120):
    "Wait until n epochs are in history.csv"
    end = time.time() + limit
    while time.time() < end and process.poll() is None:
        if path.exists() and len(pd.read_csv(path)) >= n: return
        time.sleep(.02)
    raise AssertionError(f"no epoch {n} in time: {process.communicate()}")


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_stop_and_resume(recording, tmp_path, how):
    "A run that was stopped in the middle and resumed gives the same numbers as one that was not"
    args = ["--data", recording, *SMALL, "--epochs", 6, "--out"]
    whole = shell("retina_train", *args, tmp_path/"whole", folder=tmp_path)
    out, err = whole.communicate()
    assert whole.returncode == 0, err

    p = shell("retina_train", *args, tmp_path/"stopped", folder=tmp_path)
    wait_for_epoch(tmp_path/"stopped/history.csv", 2, p)
    p.send_signal(how)
    out, err = p.communicate()
    if how == signal.SIGINT: assert p.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert len(pd.read_csv(tmp_path/"stopped/history.csv")) < 6

    p = shell("retina_train", *args, tmp_path/"stopped", "--resume", folder=tmp_path)
    out, err = p.communicate()
    assert p.returncode == 0, err
    a, b = load_run(tmp_path/"whole"), load_run(tmp_path/"stopped")
    pd.testing.assert_frame_equal(a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), check_exact=True)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(x, y)


def test_other_run_is_not_overwritten(recording, tmp_path):
    args = dict(model="bncnn", history=1, data=str(recording), set="chans=[2,3] ksizes=[3,3]", epochs=1, batch_size=256, out=str(tmp_path/"run"))
    retina_train(**args)
    for other in (dict(seed=1), dict(lr=.1), dict(epochs=2), dict(history=2)):
        with pytest.raises(InputError, match="found a run.*overwrite=True"): retina_train(**args | other)
    with pytest.raises(InputError, match="another seed"): retina_train(**args, seed=1, resume=True)
    retina_train(**args, resume=True)  # finished already: nothing changes
    assert len(load_run(tmp_path/"run").history) == 1
    retina_train(**args | dict(seed=1), overwrite=True)
    assert load_run(tmp_path/"run").config["seed"] == 1


def everything(folder): return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("model, settings", [
    ("bncnn", dict(chans=[2, 3], ksizes=[3, 3])), ("ln", {}), ("adaptive", dict(subunits=2, n_basis=4, core=8)),
    ("stacked", dict(chans=[2, 3], ksizes=[3, 3], head="mlp", hidden=4))])
def test_run_all_twice(recording, tmp_path, capsys, model, settings):
    "The same cells again open what they have trained, and say so; what a person put beside it stays"
    rec = Recording(recording)
    def train(**more): return train_run(rec, model, tmp_path/"run", **dict(history=4, epochs=1, batch_size=256, settings=dict(settings), progress=False) | more)
    train()
    (tmp_path/"run"/"notes.txt").write_text("mine")
    before = everything(tmp_path)
    again = train()
    assert everything(tmp_path) == before and "has ended with these settings and is opened" in capsys.readouterr().out
    with pytest.raises(InputError, match="found a run"): train(seed=1)
    assert everything(tmp_path) == before
    anew = train(seed=1, overwrite=True)
    assert anew.config["seed"] == 1 and (tmp_path/"run"/"notes.txt").read_text() == "mine"
    if model == "stacked": assert load_run(tmp_path/"run"/"bncnn").config["seed"] == 1
    assert again.config["seed"] == 0


def test_a_stopped_run_is_not_opened(recording, tmp_path):
    args = dict(history=2, batch_size=256, settings=dict(chans=[2, 3], ksizes=[3, 3]), progress=False)
    run = train_run(Recording(recording), "bncnn", tmp_path/"run", epochs=1, **args)
    (run.path/"training_results.json").unlink()
    with pytest.raises(InputError, match="found a run"): train_run(Recording(recording), "bncnn", tmp_path/"run", epochs=1, **args)


def test_the_default_is_said(recording, tmp_path, capsys, monkeypatch):
    "The project's own model, and the window that it is made for"
    monkeypatch.chdir(tmp_path)
    retina_train(data=str(recording), set="subunits=2 n_basis=4", epochs=1, batch_size=256)
    first, *_ = capsys.readouterr().out.splitlines()
    run = load_run("runs/adaptive")
    assert run.model_name == "AdaptiveSubunits" and f"AdaptiveSubunits with --history {run.config['history']}: the last 600 ms" in first
    for name in models: assert history_frames(load_class(name), 100) >= 40


def test_a_stacked_training_says_which(recording, tmp_path, capsys):
    train_run(Recording(recording), "stacked", tmp_path/"run", history=2, epochs=1, batch_size=256, settings=dict(chans=[2, 3], ksizes=[3, 3]))
    said = capsys.readouterr().out
    assert said.index("1 of 2 trainings: bncnn") < said.index("2 of 2 trainings: LinearStackedBNCNN")


def test_the_bar_shows_what_is_validated_first(monkeypatch):
    "At 80 columns the rest is cut"
    scores = dict(v_num=0, valid_loss=1., train_corr=.1, valid_corr=.2)
    monkeypatch.setattr(TQDMProgressBar, "get_metrics", lambda *args: scores)
    assert list(Progress().get_metrics()) == ["valid_corr", "valid_loss", "train_corr"]


def test_help_lists_the_models(tmp_path):
    p = shell("retina_train", "--help", folder=tmp_path)
    out, _ = p.communicate()
    assert all(name in " ".join(out.split()) for name in models) and "adaptive)" in out


def test_recording_changed(recording, tmp_path):
    copy = tmp_path/"copy.h5"
    copy.write_bytes(recording.read_bytes())
    retina_train(model="bncnn", history=1, data=str(copy), set="chans=[2,3] ksizes=[3,3]", epochs=1, batch_size=256, out=str(tmp_path/"run"))
    assert load_run(tmp_path/"run").recording.n_cells == 2
    with open(copy, "ab") as f: f.write(b"x")
    with pytest.raises(InputError, match="has changed"): load_run(tmp_path/"run").recording
    copy.unlink()
    with pytest.raises(InputError, match="not there"): load_run(tmp_path/"run").recording


@pytest.mark.parametrize("model", ["stacked", "stackedconv", "cnnbilstm"])
def test_other_models(recording, tmp_path, model):
    settings = dict(stacked="chans=[2,3] ksizes=[3,3] head=mlp hidden=4 pool=2", stackedconv="chans=[2,3] ksizes=[5,5]", cnnbilstm="chans=[2,3] ksizes=[3,3] hidden=8")
    retina_train(data=str(recording), model=model, history=3, set=settings[model], epochs=1, batch_size=128, out=str(tmp_path/"run"), cells="1")
    run = load_run(tmp_path/"run")
    rates = predict(run, run.recording.test.stimulus)
    assert rates.shape == (500, 1) and np.isfinite(rates[2:]).all()
    if model == "stacked": assert json.loads((tmp_path/"run/bncnn/config.json").read_text())["model"] == "retina_nb.bncnn:BNCNN"


def test_seeds(recording, tmp_path):
    retina_train(model="bncnn", history=1, data=str(recording), set="chans=[2,3] ksizes=[3,3]", epochs=1, batch_size=256, out=str(tmp_path/"run"), seeds="0,1")
    a, b = (load_run(tmp_path/"run"/f"seed{s}") for s in (0, 1))
    assert a.config["seed"] == 0 and b.config["seed"] == 1 and not np.array_equal(a.split[1], b.split[1])
    with pytest.raises(InputError, match="whole numbers"): retina_train(data=str(recording), out=str(tmp_path/"x"), seeds="0,a")


@pytest.mark.parametrize("model", ["ln", "glm"])
def test_baselines(recording, tmp_path, model):
    "Baselines are solved by the same command and leave a run folder that everything else reads"
    args = dict(data=str(recording), model=model, history=5, out=str(tmp_path/"run"))
    retina_train(**args)
    run = load_run(tmp_path/"run")
    rates = predict(run, run.recording.test.stimulus)
    assert np.isfinite(rates[4:]).all() and (rates[4:] >= 0).all()
    corr = [np.corrcoef(rates[4:, i], run.recording.test.rates[4:, i])[0, 1] for i in range(2)]
    assert min(corr) > .3 and len(run.history) == 1 and run.results["params"] == run.config["params"]
    with pytest.raises(InputError, match="found a run"): retina_train(**args | dict(history=6))
    retina_train(**args, resume=True)
