"Which epoch is kept, by what, and what the commands say of it; runs that cannot be used beside others that can"
import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import recording  # noqa: F401 a fixture

from retina_nb.bncnn import BNCNN
from retina_nb.commands import protocols, retina_results, retina_train
from retina_nb.data import InputError, Recording
from retina_nb.parallel import train_sessions
from retina_nb.training import fit, load_run, model_for, train_run

SMALL = dict(settings=dict(chans=[2, 3], ksizes=[3, 3]), history=1, batch_size=128, progress=False)


class Scripted(BNCNN):
    "A BNCNN whose rates outside of training are 20 times too low, less so from epoch to epoch, while it gets worse at all else"
    epoch = 0
    def drive(self, x):
        drive = super().drive(x)
        if self.training: return drive
        noise = torch.randn(drive.shape, generator=torch.Generator().manual_seed(0))
        return drive - 3/(1 + Scripted.epoch) + .2*Scripted.epoch*noise


def scripted(rec, out, **options):
    "Train it for four epochs"
    Scripted.epoch = 0
    def count(row): Scripted.epoch += 1
    torch.manual_seed(0)
    return fit(model_for(rec, Scripted, **SMALL["settings"]), rec, out, epochs=4, batch_size=128, progress=False, on_epoch=count, **options)


@pytest.fixture(scope="module")
def rec(recording): return Recording(recording)  # noqa: F811


def test_best_epoch(rec, tmp_path):
    "By the likelihood, if nothing else is asked for; by correlation as in the reference project"
    by_loss = scripted(rec, tmp_path/"loss", patience=0)
    by_corr = scripted(rec, tmp_path/"corr", patience=0, monitor="valid_corr")
    same = by_loss.history.drop(columns="seconds")
    pd.testing.assert_frame_equal(same, by_corr.history.drop(columns="seconds"))
    assert by_loss.results["best_epoch"] == same.valid_loss.argmin() != same.valid_corr.argmax() == by_corr.results["best_epoch"]
    assert by_loss.config["monitor"] == "valid_loss" and by_corr.config["monitor"] == "valid_corr"
    assert by_loss.results["valid_loss"] == pytest.approx(same.valid_loss.min())


def test_patience(rec, tmp_path):
    "A loss that still falls goes on where the correlation has come to its end"
    assert len(scripted(rec, tmp_path/"loss", patience=1).history) > len(scripted(rec, tmp_path/"corr", patience=1, monitor="valid_corr").history)


class Undefined(BNCNN):
    "Predicts nothing but NaN outside of training"
    def drive(self, x): return super().drive(x)*(1 if self.training else torch.nan)


def test_undefined_in_every_epoch(rec, tmp_path, capsys):
    "One line, and the last epoch"
    run = fit(model_for(rec, Undefined, **SMALL["settings"]), rec, tmp_path/"run", epochs=3, patience=1, batch_size=128, progress=False)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "valid_loss is undefined in every epoch" in said
    assert not np.isfinite(run.history.valid_loss).any() and run.results["best_epoch"] == len(run.history) - 1
    last = torch.load(run.path/"last.ckpt", weights_only=False)["state_dict"]
    for name, value in run.model.state_dict().items(): assert torch.equal(value, last[f"model.{name}"])


def as_older(path):
    "A run folder as versions wrote it that knew one way of choosing only"
    config = json.loads((path/"config.json").read_text())
    del config["monitor"]
    (path/"config.json").write_text(json.dumps(config))


def test_older_run(rec, tmp_path):
    "It can be read, and goes on as it was started"
    begun = dict(SMALL, monitor="valid_corr", patience=0)
    train_run(rec, "bncnn", tmp_path/"whole", epochs=3, **begun)
    train_run(rec, "bncnn", tmp_path/"run", epochs=1, **begun)
    as_older(tmp_path/"run")
    assert load_run(tmp_path/"run").model.n_units == 2
    run = train_run(rec, "bncnn", tmp_path/"run", epochs=3, resume=True, patience=0, **SMALL)
    assert run.config["monitor"] == "valid_corr" and run.results["best_epoch"] == run.history.valid_corr.argmax()
    columns = ["epoch", "valid_loss", "valid_corr"]
    pd.testing.assert_frame_equal(run.history[columns], load_run(tmp_path/"whole").history[columns], check_exact=True)


def test_choice_is_checked(recording, rec, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="monitor: expected valid_loss or valid_corr"):
        retina_train(data=str(recording), monitor="luck", out=str(tmp_path/"run"))
    train_run(rec, "bncnn", tmp_path/"run", epochs=1, **SMALL)
    with pytest.raises(InputError, match="another monitor"):
        train_run(rec, "bncnn", tmp_path/"run", epochs=1, resume=True, monitor="valid_corr", **SMALL)


def test_base_of_a_head_is_chosen_alike(rec, tmp_path):
    for monitor in ("valid_loss", "valid_corr"):
        train_run(rec, "stacked", tmp_path/monitor, epochs=1, monitor=monitor, **SMALL)
        assert load_run(tmp_path/monitor/"bncnn").config["monitor"] == monitor


def test_recordings_together(rec, tmp_path):
    "The epoch with the least mean loss over recordings"
    small = dict(subunits=2, n_basis=4, core=8)
    runs = train_sessions([rec, rec], "adaptive", tmp_path/"runs", history=8, settings=small, epochs=2, batch_size=256, progress=False)
    mean = np.mean([run.history.valid_loss for run in runs], 0)
    assert [run.results["best_epoch"] for run in runs] == [mean.argmin()]*2 and runs[0].config["monitor"] == "valid_loss"


def test_the_reference_keeps_its_way():
    assert protocols["reference"]["monitor"] == "valid_corr" and "monitor" not in protocols["honest"]


def test_what_is_said(recording, tmp_path, capsys):  # noqa: F811
    options = dict(model="bncnn", history=1, data=str(recording), set="chans=[2,2] ksizes=[3,3]", epochs=1, batch_size=256)
    retina_train(out=str(tmp_path/"a"), **options)
    assert "best validation loss in epoch 0: validation loss" in capsys.readouterr().out
    retina_train(out=str(tmp_path/"b"), monitor="valid_corr", **options)
    assert "best validation correlation in epoch 0" in capsys.readouterr().out


@pytest.fixture(scope="module")
def three_runs(rec, tmp_path_factory):
    "A run that works, one without weights, one whose weights are another model's"
    folder = tmp_path_factory.mktemp("runs")
    good, empty, other = (train_run(rec, "bncnn", folder/name, epochs=1, **SMALL) for name in ("good", "empty", "other"))
    for name in ("model.pth", "best.ckpt"): (empty.path/name).unlink()
    torch.save({"weight": torch.zeros(1)}, other.path/"model.pth")
    return folder


def test_results_of_runs_that_work(three_runs, tmp_path, monkeypatch, capsys):
    "A table of those; then a line for each of the others, the last as the error that ends a command with exit code 2"
    from retina_nb import report
    tabled = []
    monkeypatch.setattr(report, "write_results", lambda runs, out: tabled.extend(runs))
    monkeypatch.setattr(report, "print_summary", lambda runs, out: print("table"))
    with pytest.raises(InputError, match="nowhere: expected a run folder") as e:
        retina_results([str(three_runs), str(tmp_path/"nowhere")], out=str(tmp_path/"out"))
    out, err = capsys.readouterr()
    assert [run.name for run in tabled] == ["good"] and out == "table\n" and "\n" not in str(e.value)
    empty, other = err.splitlines()
    assert empty.startswith(f"{three_runs/'empty'}: expected trained weights") and other.startswith(f"{three_runs/'other'/'model.pth'}: expected what training_results.json was written for")


def test_results_where_none_works(three_runs, tmp_path):
    bad = [str(three_runs/name) for name in ("empty", "other")]
    with pytest.raises(InputError, match="empty: expected trained weights.*none of the 1 other runs can be used either") as e:
        retina_results(bad, out=str(tmp_path/"out"))
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()
