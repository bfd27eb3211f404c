"Clocks of full-field stimuli: what is mended, what is left alone, and what a run does with it"
import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest

from retina_nb.data import InputError, Recording, write_recording
from retina_nb.stimulus_clock import StimulusClock, find_clock, on_clock, possible_clocks
from retina_nb.training import load_run, predict, stimulus_clock, train_run

HZ = 90


def full_field(levels, size=(3, 2)):
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None], (len(levels), *size)))


def held(rng, n, frames=3):
    return np.repeat(rng.normal(127, 40, n).clip(0, 255).astype(np.uint8), frames)


def slip(levels, at, by):
    "From frame `at` on everything is late by so many frames"
    late = np.zeros(len(levels), int)
    late[at:] = by
    return levels[(np.arange(len(levels)) - late).clip(0, len(levels) - 1)]


def spikes_of(light, rng, hz=HZ):
    "Spike times, s, of a cell that answers to the light of 30 ms before"
    drive = (light.astype(float) - 127)/40
    rates = 15*np.log1p(np.exp(2*np.roll(drive, 3)))
    counts = rng.poisson(rates/hz)
    return np.repeat(np.arange(len(light)), counts)/hz + .5/hz


@pytest.fixture(scope="module")
def slipping(tmp_path_factory):
    "A recording whose training movie slips by a frame at half-time, in the file only"
    rng = np.random.default_rng(1)
    shown, test = held(rng, 1200), held(rng, 200)
    path = tmp_path_factory.mktemp("clock")/"slipping.h5"
    write_recording(path, full_field(slip(shown, len(shown)//2, 1)), [spikes_of(shown, rng) for _ in range(2)], test_stimulus=full_field(test),
                    test_spikes=[[spikes_of(test, rng) for _ in range(2)] for _ in range(4)], hz=HZ)
    return Recording(path), shown


@pytest.mark.parametrize("seed", range(4))
def test_slips_are_mended(seed):
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(3, 7))
    shown = held(rng, 900, frames)
    at = rng.integers(400, len(shown) - 400)
    file = slip(shown, at, 1)
    clock, = possible_clocks(file)
    assert clock == StimulusClock(frames, 0., False, False)
    mended = on_clock(full_field(file), [0], clock)[:, 0, 0]
    assert (mended[:-frames] == shown[:-frames]).all()


@pytest.mark.parametrize("movie", ["white noise", "with space", "still", "short"])
def test_other_movies_stay_as_they_are(movie):
    rng = np.random.default_rng(0)
    levels = {"white noise": rng.integers(0, 255, 3000, dtype=np.uint8), "still": np.zeros(3000, np.uint8), "short": held(rng, 5)}
    stimulus = full_field(levels[movie]) if movie in levels else rng.integers(0, 255, (300, 4, 4), dtype=np.uint8)
    assert on_clock(stimulus, [0], StimulusClock(3, 0., False, False)) is stimulus or \
        (on_clock(stimulus, [0], StimulusClock(3, 0., False, False)) == stimulus).all()


def test_a_mended_movie_is_steady():
    rng = np.random.default_rng(2)
    file = full_field(slip(held(rng, 900), 1000, 1))
    clock, = possible_clocks(file[:, 0, 0])
    mended = on_clock(file, [0], clock)
    assert (on_clock(mended, [0], clock) == mended).all()
    assert possible_clocks(mended[:-3, 0, 0]) == []


def test_blocks_have_clocks_of_their_own():
    rng = np.random.default_rng(3)
    first, second = held(rng, 600), held(rng, 600)
    file = full_field(np.concatenate([slip(first, 900, 1), second]))
    mended = on_clock(file, [0, len(first)], StimulusClock(3, 0., False, False))[:, 0, 0]
    assert (mended[len(first):] == second).all()
    assert (mended[:len(first) - 3] == first[:-3]).all()


def test_a_run_keeps_the_clock_and_predicts_on_it(slipping, tmp_path):
    rec, shown = slipping
    assert find_clock(rec.train) == StimulusClock(3, 0., False, False)
    run = train_run(rec, "ln", tmp_path/"ln", history=20, progress=False)
    assert run.stimulus_clock == stimulus_clock(rec) == json.loads((tmp_path/"ln/config.json").read_text())["stimulus_clock"]
    from_file, from_shown = (predict(run, x) for x in (rec.train.stimulus, full_field(shown)))
    np.testing.assert_allclose(from_file[:-3], from_shown[:-3])
    again = train_run(rec, "ln", tmp_path/"ln", history=20, progress=False, resume=True)
    assert again.config == run.config


def test_the_files_clock_is_kept_where_it_is_asked_for(slipping, tmp_path):
    rec, _ = slipping
    run = train_run(rec, "ln", tmp_path/"ln", history=20, progress=False, clock="file")
    assert load_run(tmp_path/"ln").stimulus_clock is None
    with pytest.raises(InputError, match="clock: expected auto or file, found 'steady'"):
        train_run(rec, "ln", tmp_path/"other", history=20, progress=False, clock="steady")
    with pytest.raises(InputError, match="found another clock"):
        train_run(rec, "ln", run.path, history=20, progress=False, resume=True)


data = Path(os.environ.get("RETINA_DATA") or "nowhere")
needs_data = pytest.mark.skipif(not (data/"to_h5.py").exists(), reason="RETINA_DATA names no folder with real recordings")


@needs_data
@pytest.mark.parametrize("name, clock", [
    ("salamander_flicker", StimulusClock(3, 0., False, False)), ("flashes", StimulusClock(6, 1/1176.5, True, True))])
def test_clocks_of_real_recordings(name, clock, tmp_path):
    runpy.run_path(str(data/"to_h5.py"))["to_h5"](name, tmp_path)
    found = StimulusClock(**stimulus_clock(Recording(tmp_path/f"{name}.h5")))
    assert (found.period, found.rises, found.from_end) == (clock.period, clock.rises, clock.from_end)
    assert found.drift == pytest.approx(clock.drift, rel=5e-3)
