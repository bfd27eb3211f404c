"A start from the data for odd recordings: tiny frames, silent and unrecorded cells, graded responses"
import numpy as np
import pytest
import torch

from retina_nb.bncnn import BNCNN
from retina_nb.cnnbilstm import CNNBiLSTM
from retina_nb.data import Frames, Part
from retina_nb.stacked import StackedConvBNCNN

HISTORY = 6


def part(size, n_frames=400, n_cells=3):
    "Noise, and cells that follow a pixel in the middle some frames later; the last cell is silent"
    rng = np.random.default_rng(0)
    movie = rng.integers(0, 256, (n_frames, *size), dtype=np.uint8)
    middle = movie[:, size[0]//2, size[1]//2]
    rates = np.roll(middle, 2)[:, None]/32*np.ones(n_cells)
    rates[:, -1] = 0
    return Part(movie, rates.astype(np.float32))


def started(kind, part, n_valid=100, **hyperparams):
    "A model after its start, and what it predicts of the validation frames"
    history = hyperparams.pop("history", HISTORY)
    shape = dict(img_shape=[history, *part.stimulus.shape[1:]], n_units=part.rates.shape[1])
    train = Frames(part, np.arange(history, len(part) - n_valid), history, "zscore")
    valid = Frames(part, np.arange(len(part) - n_valid, len(part)), history, train.scale)
    torch.manual_seed(0)
    model = kind(**shape, **kind.suggest(shape | hyperparams, hz=100) | hyperparams)
    assert model.from_data
    model.initialise(model.dataset(train), model.dataset(valid))
    with torch.no_grad(): predicted = model.eval().predict_movie(valid)
    assert predicted.isfinite().all()
    return model, predicted.numpy(), part.rates[valid.index]


@pytest.mark.parametrize("kind", [BNCNN, StackedConvBNCNN, CNNBiLSTM])
@pytest.mark.parametrize("size", [(1, 1), (1, 12), (2, 3), (9, 8)])
def test_any_frame(kind, size): started(kind, part(size))


def test_finds_cells():
    _, predicted, recorded = started(BNCNN, part((9, 8), 2000))
    assert all(np.corrcoef(predicted[:, cell], recorded[:, cell])[0, 1] > .5 for cell in (0, 1))
    assert predicted[:, 2].max() < .5  # Hz: a cell that is silent


@pytest.mark.parametrize("kind", [BNCNN, CNNBiLSTM])
def test_gaps(kind):
    "Frames in which a cell was not recorded say nothing of it"
    spoiled = part((6, 6), 800)
    spoiled.rates[200:500, 0] = np.nan
    _, predicted, recorded = started(kind, spoiled)
    assert np.corrcoef(predicted[:, 1], recorded[:, 1])[0, 1] > (.3 if kind is BNCNN else .1)


def test_exponential_output(): started(BNCNN, part((9, 8)), softplus=False)


def test_convolutional_readout():
    "Places are given, so the readout is learned; kernels and normalisations are there"
    model, *_ = started(BNCNN, part((12, 12)), ksizes=[3, 3, 3], convgc=True, centers=[(3, 3), (5, 5), (8, 8)])
    assert model.sequential[1].running_var.min() > 0 and model.sequential[0].weight[0].allclose(-model.sequential[0].weight[1])


def test_normalisations_rest():
    "Training leaves the statistics as they were measured"
    model, *_ = started(BNCNN, part((9, 8)))
    before = [norm.running_mean.clone() for norm in (model.sequential[1], model.sequential[10])]
    model.train()(torch.randn(32, *model.img_shape))
    after = [model.sequential[1].running_mean, model.sequential[10].running_mean]
    assert all(map(torch.equal, before, after))


def test_published_setting_stays():
    "A single frame gets what it always got"
    assert BNCNN.suggest(dict(img_shape=[1, 50, 50], n_units=9), hz=100) == {}
    assert CNNBiLSTM.suggest(dict(img_shape=[1, 50, 50], n_units=9), hz=100) == {}
    assert not BNCNN().from_data and BNCNN().default_lr == 1e-3 and BNCNN().ema_decay is None


def test_training_mode():
    "After the start the noise is on, as in a training that goes on"
    model, *_ = started(BNCNN, part((9, 8)))
    train = Frames(part((9, 8)), history=HISTORY)
    model.initialise(model.dataset(train), model.dataset(train))
    assert model.training and model.sequential[2].training and not model.sequential[1].training
