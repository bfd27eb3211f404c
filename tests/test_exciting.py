"Most exciting stimuli against filters that are known"
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retina_nb.bncnn import BNCNN, Exponential, Softplus
from retina_nb.data import InputError, Part, Scaling
from retina_nb.exciting import Blur, Budget, as_seen_by, climb, most_exciting, objective
from retina_nb.receptive_fields import FixedFilters, gaussian_checks

shape = 8, 12, 12  # frames, height, width


def filter_of(seed, sign=1):
    "Newest frame last"
    row, column = np.random.default_rng(seed).uniform(3, 8, 2)
    y, x = np.mgrid[:12, :12]
    t = np.arange(8)
    course = np.exp(-(t - 5)**2/4) - .5*np.exp(-(t - 1)**2/4)
    return sign*course[:, None, None]*np.exp(-((y - row)**2 + (x - column)**2)/9)


def run_of(model, n_cells=1, name="by hand"):
    movie = gaussian_checks((500, *shape[1:]), check=1)
    names = [f"cell{i + 1:02d}" for i in range(n_cells)]
    recording = SimpleNamespace(train=Part(movie, np.zeros((500, n_cells), np.float32)), cell_names=names, n_cells=n_cells, hz=100.)
    return SimpleNamespace(model=model.eval(), scale=Scaling("by hand", 127.5, 1/40), name=name, recording=recording)


def by_hand(filters, output=None, **given):
    model = FixedFilters(output, img_shape=shape, n_units=len(filters), **given)
    model.filters.data = torch.tensor(np.array(filters), dtype=torch.float32)[:, None]
    return model


def r(a, b): return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("output, gain", [(None, 1), (Exponential(), .2), (Softplus(), .2)], ids=("linear", "LN exp", "LN softplus"))
def test_is_the_filter(seed, output, gain):
    f = filter_of(seed, sign=(-1)**seed)
    excited = most_exciting(run_of(by_hand([gain*f], output)), steps=30, contrast=.2, clips=50)
    assert all(r(movie, f) > .95 for movie in excited.movies[0])
    assert excited.table.agreement.iloc[0] > .99 and excited.table.gain.iloc[0] > 1


def test_stays_in_the_budget():
    torch.manual_seed(0)
    model = by_hand([filter_of(0)])
    budget = Budget(grey=.2, low=-.5, high=.6, norm=3.)
    found = climb(objective(model, torch.ones(2, 1)), torch.randn(2, *shape), budget, Blur(shape))
    assert found.flatten(1).norm(dim=1).max() <= 3.001
    assert (.2 + found).min() >= -.5001 and (.2 + found).max() <= .6001


def test_one_group_against_another():
    a, b = filter_of(0), filter_of(1)
    run = run_of(by_hand([.3*(a + b), .3*b, .3*b], Exponential()), 3)
    excited = most_exciting(run, ["cell01"], against=["cell02", 2], steps=30, contrast=.2, clips=50)
    line = excited.table.iloc[0]
    assert line.name == "cell01 against cell02, cell03" and line.rate > 2*line.unwanted_rate
    assert r(excited.movies[0, 0], a) > .9


def test_a_second_model():
    "One that knows the filter answers, one that looks elsewhere does not"
    f, other = filter_of(0), np.roll(filter_of(0), 6, 2)
    run, same, elsewhere = (run_of(by_hand([.3*g], Exponential()), name=n) for g, n in ((f, "a"), (f, "b"), (other, "c")))
    same.scale, elsewhere.scale = Scaling("other", 127.5, 1/40), Scaling("other", 127.5, 1/40)
    yes, no = (most_exciting(run, second=s, steps=20, contrast=.2, clips=50).table.iloc[0] for s in (same, elsewhere))
    assert abs(yes.second_rate/yes.rate - 1) < .01 and yes.transfer > 2 and yes.transfer > 50*no.transfer


def test_second_model_of_other_frames():
    model = FixedFilters(img_shape=[3, 5, 5])
    with pytest.raises(InputError, match="second model of the same recording"): as_seen_by(run_of(model), np.zeros((1, *shape)), 0)


def test_a_network_and_its_figure():
    torch.manual_seed(0)
    run = run_of(BNCNN(img_shape=shape, chans=[2, 2], ksizes=[3, 3], n_units=2), 2)
    excited = most_exciting(run, seeds=2, steps=10, clips=40)
    assert excited.movies.shape == (2, 2, *shape) and excited.clips.shape == (2, *shape)
    assert (excited.table.gain >= 1).all() and len(excited.figure().axes) == 6
    with pytest.raises(InputError, match="cell"): most_exciting(run, "nobody")
    one = most_exciting(run, 1, seeds=1, steps=2, clips=10)
    assert list(one.table.index) == ["cell02"] and np.isnan(one.table.agreement.iloc[0])
