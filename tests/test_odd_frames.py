"Recordings of few pixels, or of another frame rate: defaults fit them, and one model that fails does not cost the others"
import numpy as np
import pandas as pd
import pytest

from retina_nb.baselines import GLM
from retina_nb.bncnn import cut_kernels, kernels_fit
from retina_nb.commands import demo_history, retina_demo, retina_train
from retina_nb.data import InputError, Recording, write_recording
from retina_nb.eda import overview, receptive_fields
from retina_nb.stacked import StackedConvBNCNN
from retina_nb.training import load_run, model_for, predict


def record(path, size=(4, 4), hz=90., seconds=30, cells=2):
    "Noise, and cells that answer to one dark pixel each, 50 ms later"
    rng = np.random.default_rng(0)
    delay = max(1, round(.05*hz))

    def movie(s): return rng.integers(0, 256, (round(s*hz), *size), dtype=np.uint8)

    def spikes(m):
        seen = np.roll(m.reshape(len(m), -1), delay, 0)[:, np.arange(cells) % (size[0]*size[1])]
        n = rng.poisson(np.maximum(0, 128. - seen)/4/hz)
        return [(np.repeat(np.arange(len(k)), k) + .5)/hz for k in n.T]

    train, test = movie(seconds), movie(10)
    return write_recording(path, train, spikes(train), test_stimulus=test, test_spikes=[spikes(test) for _ in range(3)], hz=hz)


ODD = [((4, 4), 90.), ((1, 1), 30.), ((1, 50), 50.), ((5, 6), 5.)]


@pytest.mark.parametrize("size, hz", ODD)
def test_defaults_fit(tmp_path, size, hz, capsys):
    "Every model is built with its defaults, and says what it has because of the recording"
    rec = Recording(record(tmp_path/"odd.h5", size, hz, seconds=10))
    for name in ("bncnn", "stackedconv", "cnnbilstm", "ln", "glm"):
        model = model_for(rec, name, history=3).eval()
        assert model.hyperparams["img_shape"] == [3, *size]
        if name == "bncnn": assert f"frames of {size[0]} × {size[1]} pixels" in capsys.readouterr().out


@pytest.mark.parametrize("size, hz", ODD)
def test_trained_with_the_defaults(tmp_path, size, hz, capsys):
    rec = record(tmp_path/"odd.h5", size, hz, seconds=2000/hz)
    retina_train(data=str(rec), model="bncnn", history=1, epochs=1, batch_size=128, out=str(tmp_path/"run"))
    said = capsys.readouterr().out
    assert said.count("BNCNN: ksizes=[") == 1
    run = load_run(tmp_path/"run")
    rates = predict(run, run.recording.test.stimulus)
    assert rates.shape[1] == 2 and np.isfinite(rates).all()


def test_kernels_of_ones_own_are_not_changed(tmp_path):
    rec = Recording(record(tmp_path/"odd.h5", seconds=10))
    assert model_for(rec, "bncnn", ksizes=[3, 2]).hyperparams["ksizes"] == [3, 2]
    with pytest.raises(InputError, match="take smaller ksizes"): model_for(rec, "bncnn", ksizes=[5, 5])


def test_published_frames_keep_the_published_settings(tmp_path, capsys):
    rec = Recording(record(tmp_path/"usual.h5", (50, 50), 100., seconds=5))
    for name in ("bncnn", "stackedconv", "cnnbilstm", "glm"): model_for(rec, name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("pad", [0, 1])
def test_cut_kernels(pad):
    "The longest that fit, never longer than what is asked for"
    for size in range(1, 30):
        for ksizes in ([5, 5], [15, 11], [3, 7]):
            cut = cut_kernels(size, ksizes, [pad, pad])
            assert kernels_fit(size, cut, [pad, pad]) and all(c <= k for c, k in zip(cut, ksizes))
            if cut == ksizes: continue
            longer = [min(k, max(cut) + 1) for k in ksizes]
            assert not kernels_fit(size, longer, [pad, pad])


def test_stacked_convolutions_fit(tmp_path):
    for size in range(1, 9):
        shape = dict(img_shape=[2, size, size + 1], n_units=2, chans=[2, 2])
        StackedConvBNCNN(**shape, **StackedConvBNCNN.suggest(shape, hz=100))


def test_pieces_of_time_are_seconds():
    assert [demo_history("honest", hz) for hz in (5, 30, 50, 90, 100)] == [2, 12, 20, 36, 40]
    assert {demo_history("reference", hz) for hz in (5, 100)} == {1}
    assert [GLM.suggest({}, hz).get("spike_history", 40) for hz in (5, 30, 50, 90, 100)] == [2, 12, 20, 36, 40]


@pytest.mark.parametrize("hz", [30., 90.])
def test_receptive_fields_at_another_rate(tmp_path, hz):
    "The same 50 ms, in as many frames as those are; the filter reaches back 0.3 s"
    rec = Recording(record(tmp_path/"noise.h5", (6, 6), hz, seconds=120))
    fields = receptive_fields(rec)
    assert (fields.lag == round(.05*hz)).all() and fields.course.shape[1] == round(.3*hz) and (fields.sign == -1).all()


@pytest.mark.parametrize("size, hz", [((1, 1), 5.), ((1, 50), 30.)])
def test_overview(tmp_path, size, hz):
    overview(Recording(record(tmp_path/"odd.h5", size, hz, seconds=60)))


def test_demo(tmp_path, monkeypatch, capsys):
    "Where training or predicting of a model fails the others get their table, and a line says which and why"
    from retina_nb import commands, evaluation
    def predicted(run, *args): return predict(run, *args) if run.model_name == "LN" else 1/0
    monkeypatch.setattr(evaluation, "predict", predicted)
    monkeypatch.setattr(commands, "demo_models", ["ln", "bncnn", "resnet"])
    rec = record(tmp_path/"flicker.h5", seconds=25)
    retina_demo(data=str(rec), epochs=1, out=str(tmp_path/"demo"))
    out, err = capsys.readouterr()
    table = pd.read_csv(tmp_path/"demo"/"results.csv")
    assert table.model.tolist() == ["LN"] and (table.history == 36).all() and "report.html" in out
    by_prediction, by_training = err.splitlines()
    assert "bncnn: ZeroDivisionError" in by_prediction and "resnet: model: expected one of adaptive" in by_training


def test_demo_without_any_model(tmp_path, monkeypatch):
    from retina_nb import commands
    monkeypatch.setattr(commands, "demo_models", ["resnet", "nonet"])
    rec = record(tmp_path/"flicker.h5", seconds=25)
    with pytest.raises(InputError, match="resnet: .*none of the 1 other models"): retina_demo(data=str(rec), epochs=1, out=str(tmp_path/"none"))
    assert not (tmp_path/"none").exists()
