"A model that somebody else wrote, from a file in their folder to its row in the table"
import json
import os
import sys
import sysconfig
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import forks
from test_training import recording  # noqa: F401 a fixture

from retina_nb import bncnn, contract, hyperparameters, outputs, rate_model
from retina_nb.bncnn import RateModel, Softplus, check_model
from retina_nb.commands import retina_train
from retina_nb.data import InputError, Recording
from retina_nb.results import results_table
from retina_nb.training import fit, load_run, predict

CODE = '''
import torch
from retina_nb.bncnn import RateModel, Softplus


class Mine(RateModel):
    "A linear filter for each cell"
    defaults = dict(img_shape=(4, 12, 12), n_units=2, gain=1.)
    default_lr = 0.01

    def __init__(self, **given):
        super().__init__(**given)
        history, height, width = self.img_shape
        self.filter = torch.nn.Linear(history*height*width, self.n_units)
        self.output = Softplus()

    def drive(self, x):
        return self.hyperparams["gain"]*self.filter(self.check_input(x).flatten(1))


class Stranger(torch.nn.Linear): pass


class Stiff(RateModel):
    def __init__(self, size): super().__init__()
'''


@pytest.mark.parametrize("room", [outputs, hyperparameters, rate_model, contract], ids=lambda m: m.__name__)
def test_what_bncnn_handed_on_is_still_found_there(room):
    "Models written before import all of the contract from retina_nb.bncnn"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: getattr(bncnn, name) for name in room.__all__}
    assert all(value is getattr(room, name) for name, value in found.items())
    assert set(room.__all__) <= set(bncnn.__all__)


def start(command, *args, cwd):
    "Start an installed command in a folder; it finds nothing but what is installed, and what is in the folder"
    script = Path(sysconfig.get_path("scripts"))/command
    if not script.exists(): pytest.skip("retina_nb is not installed here: make test installs it")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return forks.start(script, *args, cwd=cwd, env=env | {"OMP_NUM_THREADS": "1"})


def finish(process):
    "What it printed, where it went well"
    out, err = process.communicate()
    assert process.returncode == 0 and "Traceback" not in err, err
    return out


def complaint(process):
    "The one line that it said, where it did not"
    out, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1 and not out, out + err
    return err


@pytest.fixture(scope="module")
def folder(recording, tmp_path_factory):
    "A folder with my_models.py and a run that retina_train left there"
    folder = tmp_path_factory.mktemp("mine")
    (folder/"my_models.py").write_text(CODE)
    train = start("retina_train", "--data", recording, "--model", "my_models:Mine", "--history", 4, "--epochs", 2, "--accelerator", "cpu", cwd=folder)
    assert "runs/Mine: 2 epochs" in finish(train)
    return folder


def test_run_without_trust(recording, folder):
    "One line says whose code it would run, and nothing runs"
    runs = start("retina_predict", "--run", "runs/Mine", "--data", recording, cwd=folder), start("retina_results", "runs/Mine", cwd=folder)
    for said in map(complaint, runs): assert "my_models:Mine" in said and "--trust" in said
    assert not (folder/"rates.npz").exists() and not (folder/"results").exists()


def test_run_with_trust(recording, folder):
    rates = start("retina_predict", "--run", "runs/Mine", "--data", recording, "--trust", cwd=folder)
    table = start("retina_results", "runs/Mine", "--trust", "--out", "table", cwd=folder)
    assert "2 cells, 500 frames" in finish(rates)
    assert "Mine" in finish(table)
    assert np.load(folder/"rates.npz")["rates"].shape == (500, 2)
    row, = pd.read_csv(folder/"table/results.csv").itertuples()
    assert row.model == "Mine" and row.history == 4 and row.params == 2*(4*12*12 + 1) and row.epochs == 2
    assert row.test_corr > .1  # it has learned something


def test_sweep(recording, folder):
    sweep = start("retina_sweep", "--data", recording, "--model", "my_models:Mine", "--history", 4, "--epochs", 1, "--search", "grid", "--space", "gain=1.,2.",
                  cwd=folder)
    assert "retina_results" in finish(sweep)
    table = pd.read_csv(folder/"runs/sweep_Mine/sweep.csv")
    assert sorted(table.gain) == [1, 2] and (table.state == "done").all()


def test_run_in_another_folder(recording, folder, tmp_path):
    "Where its class cannot be found, one line says where to put it"
    said = complaint(start("retina_predict", "--run", folder/"runs/Mine", "--data", recording, "--trust", cwd=tmp_path))
    assert "import Mine from my_models" in said and "my_models.py, in the folder where you are" in said


@pytest.mark.parametrize("model, words", [
    ("broken:Mine", "SyntaxError"),
    ("models_here:Yours", "no attribute 'Yours'"),
    ("models_here:Stranger", "expected a subclass of retina_nb.bncnn.RateModel, found models_here:Stranger"),
    ("models_here:Stiff", "expected models_here:Stiff to take img_shape, n_units"),
    ("nowhere:Mine", "No module named 'nowhere'"),
    ("models_here:", "module:Class"),
])
def test_mistakes(recording, tmp_path, monkeypatch, model, words):
    "One line that names the mistake, and no run is left behind"
    (tmp_path/"models_here.py").write_text(CODE)
    (tmp_path/"broken.py").write_text("def Mine(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "models_here", raising=False)
    with pytest.raises(InputError) as e: retina_train(data=str(recording), model=model, history=4, out="run")
    assert words in str(e.value) and "\n" not in str(e.value)
    assert not Path("run").exists()


class Linear(RateModel):
    "A linear filter for each cell"
    defaults = dict(img_shape=(4, 12, 12), n_units=2)

    def __init__(self, **given):
        super().__init__(**given)
        history, height, width = self.img_shape
        self.filter = torch.nn.Linear(history*height*width, self.n_units)
        self.output = Softplus()

    def drive(self, x): return self.filter(self.check_input(x).flatten(1))


def local_class():
    "A class that nobody can import"
    class Local(Linear): pass
    return Local


def test_contract(): assert check_model(Linear()) < .5


@pytest.mark.parametrize("kind", [Linear, local_class()], ids=lambda kind: kind.__name__)
def test_in_one_process(recording, tmp_path, kind):
    "Wherever the class was written, the run that fit returns predicts and has its row"
    rec = Recording(recording)
    run = fit(kind(), rec, tmp_path/"run", epochs=1, batch_size=256, lr=.01, progress=False, accelerator="cpu")
    assert predict(run, rec.test.stimulus).shape == (500, 2)
    table = results_table([run])
    assert table.model[0].endswith(kind.__name__) and np.isfinite(table.test_corr).all()
    with pytest.raises(InputError, match="trust=True"): load_run(tmp_path/"run")
    again = load_run(tmp_path/"run", trust=True)
    if kind is not Linear:
        with pytest.raises(InputError, match="at the top of"): again.model
    else: np.testing.assert_array_equal(predict(again, rec.test.stimulus), predict(run, rec.test.stimulus))


class Counting(Linear):
    "A model with a number that is no size"
    defaults = Linear.defaults | dict(first_seed=123_456_789)
    rules = Linear.rules | dict(first_seed=(int, "a whole number"))


def test_numbers_that_are_no_sizes(recording, tmp_path):
    "Hyperparameters of one's own may be any numbers; those of this package have a reasonable size"
    fit(Counting(), Recording(recording), tmp_path/"run", epochs=1, batch_size=256, progress=False, accelerator="cpu")
    assert load_run(tmp_path/"run", trust=True).model.hyperparams["first_seed"] == 123_456_789
    path = tmp_path/"run"/"config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model": "retina_nb.bncnn:BNCNN"}))
    with pytest.raises(InputError, match="hyperparams: expected no number beyond 100,000"): load_run(tmp_path/"run")
