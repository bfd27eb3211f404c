"The physiologist's bench: what was built is found, what cannot be there is not"
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from retina_nb.bench import ModelCells, absent, as_responder, impossible, outside, present
from retina_nb.bncnn import BNCNN
from retina_nb.controls import (LN, DirectionCells, GainControl, LatencyCells, LightAdaptation, Linear, ObjectCells,
                                PeriodCells, SaccadeCells, SubunitCells)
from retina_nb.data import InputError, Scaling
from retina_nb.experiments import ask_all, experiments, sheet
from retina_nb.stimuli import Screen, stimuli

screen = Screen((30, 30), hz=100)
built = dict(
    frequency_doubling=SubunitCells, null_test=SubunitCells, object_motion=ObjectCells, direction=DirectionCells,
    latency_coding=LatencyCells, luminance_adaptation=LightAdaptation, motion_anticipation=LightAdaptation,
    omitted_stimulus=PeriodCells, saccadic_suppression=SaccadeCells,
    paired_flashes=lambda *a: GainControl(*a, tau=.1, strength=50.), chirp_response=lambda *a: GainControl(*a, tau=.15),
    fast_contrast_adaptation=lambda *a: GainControl(*a, tau=.15), slow_contrast_adaptation=lambda *a: GainControl(*a, tau=1.))
linear_has_it = {"step_polarity", "spot_size"}


@pytest.mark.parametrize("make", stimuli.values(), ids=stimuli)
@pytest.mark.parametrize("size, hz, um", [((50, 50), 100, 50), ((9, 14), 50, 30), ((4, 4), 30, 100)])
def test_a_stimulus_fits_its_screen(make, size, hz, um):
    shown = make(Screen(size, hz, mean=100, contrast=.3, um_per_pixel=um))
    assert shown.movie.dtype == np.uint8 and shown.movie.shape[1:] == size
    assert (shown.events.onset + shown.events.frames <= len(shown)).all() and (shown.events.onset >= 0).all()


def test_lengths_follow_the_scale():
    "The same spot in micrometres covers a quarter of the pixels when a pixel is twice as large"
    area = {um: (stimuli["spots"](Screen((60, 60), 100, um_per_pixel=um), diameters_um=(800,)).movie != 128).any(0).sum() for um in (25, 50)}
    assert 3 < area[25]/area[50] < 4.5


def test_cells_keep_their_numbers():
    everyone = experiments["step_polarity"](LN(screen))
    some = experiments["step_polarity"](LN(screen), cells=[2, 0])
    assert some.index.index.tolist() == [2, 0] == some.verdict.index.tolist()
    assert np.allclose(some.index["index"], everyone.index["index"].loc[[2, 0]])
    with pytest.raises(InputError, match="expected some of"): experiments["step_polarity"](LN(screen), cells=[3])


def test_a_cell_found_once_is_found_for_all():
    "A subset taken before or after cells were located gives the same places"
    late = as_responder(LN(screen))
    late.centers, late.signs, late.grey
    assert np.allclose(late.only([1, 2]).centers, as_responder(LN(screen), [1, 2]).centers)
    assert (late.only([1, 2]).signs == as_responder(LN(screen), [1, 2]).signs).all()


@dataclass
class Silent:
    "Cells that never fire, and say so with numbers"
    screen: Screen = screen
    n_cells: int = 2
    memory: float = np.inf
    name: str = "silent"
    def responses(self, movie): return np.zeros((len(movie), self.n_cells))


@pytest.mark.parametrize("name", experiments)
def test_silent_cells_show_nothing(name):
    assert set(experiments[name](Silent()).verdict) == {absent}


def test_space_needs_pixels():
    small = Silent(Screen((4, 4), 50))
    for name, ask in experiments.items():
        if ask.criterion.space: assert set(ask(small).verdict) == {impossible}, name


def test_a_full_field_recording_knows_no_patterns():
    result = experiments["direction"](LN(Screen((30, 30), 100, full_field=True)))
    assert set(result.verdict) == {outside} and result.outside == 1


def test_a_window_model_answers_the_same_in_parts():
    torch.manual_seed(0)
    model = BNCNN(img_shape=(12, 30, 30), n_units=2, chans=[2, 2], ksizes=[9, 5, 3])
    cells = ModelCells(model, screen, Scaling("unit", 0, 1/255))
    movie = stimuli["step"](screen).movie
    at = np.array([[30, 200], [55, 131]])
    whole = cells.responses(np.concatenate([np.full((12, 30, 30), screen.light(0)), movie]))[12:]
    assert np.allclose(as_responder(cells).at(movie, at), whole[at], atol=1e-4)


def test_linear_numbers():
    cells = Linear(screen, 1)
    assert experiments["frequency_doubling"](cells).index["index"].max() < .01
    assert abs(experiments["fast_contrast_adaptation"](cells, seeds=(0,), seconds=6).index["index"] - 1).max() < .02


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", built)
def test_controls(name, seed):
    ask = experiments[name]
    for kind in (Linear, LN): assert present not in set(ask(kind(screen, seed)).verdict), kind.name
    result = ask(built[name](screen, seed))
    assert set(result.verdict) == {present}, result.index
    if name == "slow_contrast_adaptation": assert abs(result.index.tau - 1).max() < .2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gain_ratio_of_ln_is_one(seed):
    for kind in (Linear, LN): assert abs(experiments["fast_contrast_adaptation"](kind(screen, seed)).index["index"] - 1).max() < .02


@pytest.mark.slow
def test_every_experiment_has_a_control():
    assert set(experiments) == set(built) | linear_has_it
    assert sheet({"LN": ask_all(LN(screen), linear_has_it)}).loc["spot_size"].item() == "3 of 3"
