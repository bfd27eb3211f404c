"Stretches of neighbouring frames: the same numbers as windows, whatever the sizes, the split and the blocks"
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_nb.bncnn import BNCNN, check_model, paper_hyperparams
from retina_nb.cnnbilstm import CNNBiLSTM
from retina_nb.data import Frames, InputError, Part, Recording
from retina_nb.stacked import LinearStackedBNCNN, StackedConvBNCNN
from retina_nb.stretches import Stretches, stretch_convolution, stretch_starts, stretches_pay
from retina_nb.training import fit, load_run, model_for, predict
from tests.conftest import record_noise


def movie_part(size, n=200, cells=3, blocks=(0, 90)):
    rng = np.random.default_rng(0)
    return Part(rng.integers(0, 256, (n, *size), dtype=np.uint8), rng.uniform(0, 9, (n, cells)).astype(np.float32), blocks=blocks)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_convolution(data):
    "Any size, any history, any kernel that fits, with grey far from zero"
    def whole(low, high): return data.draw(st.integers(low, high))
    size, history, length = (whole(1, 17), whole(1, 17)), whole(1, 12), whole(1, 9)
    kernel = whole(1, size[0]), whole(1, size[1])
    weight, bias = torch.randn(3, history, *kernel), torch.randn(3)
    frames = whole(0, 200) + torch.randn(2, length + history - 1, *size)
    windows = frames.unfold(1, history, 1).movedim(-1, 2)
    expected = F.conv2d(windows.flatten(0, 1).double(), weight.double(), bias.double()).unflatten(0, (2, length))
    found = stretch_convolution(frames, weight, bias)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4*expected.abs().max().clamp_min(1)


def of_split(split, n=200, history=1):
    "Frames of a part of a movie, not in the order of time"
    index = dict(all=np.arange(n), every_third=np.arange(0, n, 3), one=np.array([n - 1]), late=np.arange(n - 20, n), random=np.flatnonzero(np.random.default_rng(1).random(n) < .3))[split]
    return np.random.default_rng(2).permutation(index)


@pytest.mark.parametrize("split", ["all", "every_third", "one", "late", "random"])
@pytest.mark.parametrize("history, length", [(1, 8), (6, 8), (40, 5), (6, 1)])
def test_every_wanted_frame_once(split, history, length):
    "The windows and rates of a split, in the order of time; none without its history in its own block"
    part = movie_part((3, 4))
    frames = Frames(part, of_split(split), history)
    stretches = Stretches(frames, length)
    batch, rates = stretches.__getitems__(range(len(stretches)))
    windows = batch.frames.unfold(1, history, 1).movedim(-1, 2)[batch.wanted]
    expected = frames.__getitems__(stretches.order.copy())
    assert torch.equal(windows, expected[0]) and torch.equal(rates, expected[1])
    assert batch.wanted.any(1).all() and batch.wanted.sum() == len(frames)
    assert stretches.nbytes == part.stimulus.nbytes


def test_few_stretches():
    "A stretch begins where the one before does not reach"
    assert stretch_starts(np.arange(100), 8) == list(range(0, 100, 8))
    assert stretch_starts(np.array([3, 50, 51, 58, 59]), 8) == [0, 1, 3]


kinds = {"channels": {}, "pixels": dict(bnorm_d=1), "papers": dict(bnorm_d=1, bias=True, softplus=True), "places": dict(convgc=True, centers=[(3, 4), (10, 9), (12, 14)])}


@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("history", [1, 12])
@pytest.mark.parametrize("model_class", [BNCNN, StackedConvBNCNN])
def test_same_rates(model_class, kind, history):
    "Of a movie with a block, in stretches and in windows, and the gradient of both"
    torch.manual_seed(0)
    model = model_class(img_shape=(history, 19, 16), chans=[3, 4], ksizes=[6, 3, 3], n_units=3, **kinds[kind])
    frames = Frames(movie_part((19, 16), 90, blocks=(0, 41)), of_split("every_third", 90), history)
    model.train()(torch.rand(8, history, 19, 16))  # the running averages move
    model.eval()
    found, gradients = {}, {}
    for way in ("windows", "stretches"):
        model.choose_batches(way)
        with torch.no_grad(): found[way] = model.predict_movie(frames)
        dataset = model.dataset(frames)
        batch, rates = dataset.__getitems__(range(len(dataset)))
        assert len(rates) == len(frames)
        model.zero_grad()
        model.drive_batch(batch, frames.scale).square().sum().backward()
        gradients[way] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found["stretches"], found["windows"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients["stretches"], gradients["windows"], rtol=1e-3, atol=1e-4*gradients["windows"].abs().max())


def test_same_features():
    "A head on a frozen network gets the same features and says the same rates"
    base = BNCNN(img_shape=(12, 19, 16), chans=[3, 4], ksizes=[6, 3], n_units=3).eval()
    frames = Frames(movie_part((19, 16), 90, blocks=(0, 41)), of_split("random", 90), 12)
    found = {}
    for way in ("windows", "stretches"):
        head = LinearStackedBNCNN(base, pool=2)
        head.bncnn.choose_batches(way)
        found[way] = head.dataset(frames).features, head.predict_movie(frames)
    for a, b in zip(*found.values()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_choice():
    "By arithmetic, overridable, and never stretches for a single frame or a drive of one's own"
    class Own(BNCNN):
        def drive(self, x): return super().drive(x)
    assert BNCNN(**paper_hyperparams).batches == "stretches" and BNCNN().batches == "windows"
    assert Own(**paper_hyperparams).batches == "windows"
    assert not stretches_pay((8, 1, 15, 15), (50, 50)) and stretches_pay((8, 40, 15, 15), (50, 50))
    with pytest.raises(InputError, match="batches: expected auto, windows or stretches"): BNCNN().choose_batches("both")
    with pytest.raises(InputError, match="fed in one way only"): CNNBiLSTM().choose_batches("stretches")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise")/"noise.h5"
    record_noise(path, (20, 18), frames=500)
    return Recording(path)


def trained(noise, out, **how):
    torch.manual_seed(0)
    return fit(model_for(noise, "bncnn", 20, chans=[2, 3], ksizes=[9, 3]), noise, out, **{**dict(epochs=2, batch_size=32, batches="stretches", progress=False), **how})


def test_run(noise, tmp_path):
    "The way is in the run's config; a run goes on as it was begun, and gives the same numbers"
    run = trained(noise, tmp_path/"a")
    assert run.config["batches"] == "stretches"
    assert trained(noise, tmp_path/"w", batches="windows", epochs=1).config["batches"] == "windows"
    trained(noise, tmp_path/"b", epochs=1)
    again = trained(noise, tmp_path/"b", resume=True)
    assert again.history.drop(columns="seconds").equals(run.history.drop(columns="seconds"))
    with pytest.raises(InputError, match="another batches"): trained(noise, tmp_path/"b", batches="windows", resume=True)
    rates = predict(run, noise.test.stimulus)
    run.model.choose_batches("windows")
    np.testing.assert_allclose(predict(run, noise.test.stimulus), rates, rtol=1e-4, atol=1e-5)


def test_run_of_before(noise, tmp_path):
    "A run from before there was a choice goes on with windows"
    trained(noise, tmp_path/"run", batches="windows", epochs=1)
    config = json.loads((tmp_path/"run/config.json").read_text())
    del config["batches"]
    (tmp_path/"run/config.json").write_text(json.dumps(config))
    (tmp_path/"run/training_results.json").unlink()  # it has a checksum of these settings
    checkpoint = torch.load(tmp_path/"run/last.ckpt")
    del checkpoint["config"]
    torch.save(checkpoint, tmp_path/"run/last.ckpt")
    straight = trained(noise, tmp_path/"straight", batches="windows")
    went_on = trained(noise, tmp_path/"run", batches="auto", resume=True)
    assert went_on.history.drop(columns="seconds").equals(straight.history.drop(columns="seconds"))


@pytest.mark.parametrize("history, patch", [(7, 1), (7, 2), (8, 4), (3, 3)])
def test_carried_is_causal(history, patch):
    "The first frame of a stretch has the window's drive, and no frame after it counts; blocks know nothing of each other"
    torch.manual_seed(0)
    model = CNNBiLSTM(img_shape=(history, 12, 10), chans=[2, 3], ksizes=[3, 3], hidden=5, n_units=3, carried=True, patch=patch).eval()
    part = movie_part((12, 10), 120, blocks=(0, 61))
    frames = Frames(part, history=history)
    stretches = model.dataset(frames)
    batch, _ = stretches.__getitems__(range(len(stretches)))
    first = [0, *batch.wanted.sum(1).cumsum(0).tolist()[:-1]]
    with torch.no_grad():
        whole = model.predict_movie(frames)
        of_stretches = model.output(model.drive_batch(batch, frames.scale))
        windows = model(frames.scale(frames.__getitems__(first)[0]))
        later = part.stimulus.copy()
        later[40:61] = 255 - later[40:61]
        changed = model.predict_movie(Frames(Part(later, part.rates, blocks=part.blocks), history=history))
    torch.testing.assert_close(of_stretches[first], windows, rtol=1e-4, atol=1e-5)
    at = frames.index
    torch.testing.assert_close(changed[at < 40], whole[at < 40])
    torch.testing.assert_close(changed[at >= 61], whole[at >= 61])
    assert not torch.allclose(changed[(at >= 40) & (at < 61)], whole[(at >= 40) & (at < 61)])


def test_state_goes_through():
    "A movie in pieces is the movie"
    model = CNNBiLSTM(img_shape=(6, 12, 10), chans=[2, 3], ksizes=[3, 3], hidden=5, n_units=3, carried=True, patch=3).eval()
    frames = Frames(movie_part((12, 10), 100, blocks=(0,)), history=6)
    with torch.no_grad(): torch.testing.assert_close(model._drive_block(frames, 0, 100, 9), model._drive_block(frames, 0, 100, 99))


def test_sequences_of_before():
    "Hyperparameters without the new names make the model of windows, tensor for tensor"
    old = dict(img_shape=(5, 12, 10), chans=[2, 3], ksizes=[3, 3], hidden=5, n_units=3)
    model = CNNBiLSTM(**old)
    assert not model.stateful and not model.hyperparams["carried"] and model.hyperparams["patch"] == 1
    assert model.state_dict().keys() == CNNBiLSTM(**old | dict(img_shape=(1, 12, 10))).state_dict().keys() == CNNBiLSTM(**old, carried=True).state_dict().keys()


def test_single_frame_is_the_published_one():
    "One step of a carried state is the published model"
    shape = dict(img_shape=(1, 12, 10), chans=[2, 3], ksizes=[3, 3], hidden=5, n_units=3)
    model, carried = CNNBiLSTM(**shape).eval(), CNNBiLSTM(**shape, carried=True).eval()
    carried.load_state_dict(model.state_dict())
    x = torch.rand(4, 1, 12, 10)
    with torch.no_grad(): torch.testing.assert_close(carried(x), model(x))
    assert CNNBiLSTM.suggest(shape, 100) == {}


def test_carried_trains(noise, tmp_path):
    "For a recording, a model of sequences carries its state; two trainings give the same numbers"
    def run(out):
        torch.manual_seed(0)
        return fit(model_for(noise, "cnnbilstm", 8, chans=[2, 2], ksizes=[3, 3], hidden=4), noise, out, epochs=2, batch_size=64, progress=False)
    a, b = run(tmp_path/"a"), run(tmp_path/"b")
    assert a.model.hyperparams["carried"] and a.model.hyperparams["patch"] == 4
    assert a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))
    assert np.isfinite(predict(load_run(tmp_path/"a"), noise.test.stimulus)[7:]).all()


def test_contract():
    torch.manual_seed(0)
    assert check_model(BNCNN(img_shape=(12, 20, 18), chans=[4, 6], ksizes=[9, 3], n_units=3)) < .5
    assert check_model(CNNBiLSTM(img_shape=(8, 16, 18), chans=[4, 6], ksizes=[5, 3], n_units=3, hidden=16, carried=True, patch=4)) < .5
