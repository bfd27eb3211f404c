"Time is checked, not believed: units, evenness, pauses, clips, low frame rates, one rate"
import warnings

import h5py
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from retina_nb.data import SMOOTHING_S, InputError, Part, Recording, full_history, guard_frames, split_frames, write_recording
from retina_nb.frame_times import check_clock, even_grid, frame_rate, starts_after_pauses, unevenness

quick = settings(max_examples=60, deadline=None, derandomize=True)
rates = st.sampled_from([.5, 1., 7.8125, 15., 29.97, 30., 59.94, 60., 85., 100., 120., 144., 399.6, 1000.])


def record(path, n=400, n_test=200, hz=100., cells=2, repeats=3, rate=8., seed=0, **options):
    rng = np.random.default_rng(seed)
    def movie(m): return rng.integers(0, 256, (m, 3, 4), dtype=np.uint8)
    def spikes(m): return [np.sort(rng.uniform(0, m/hz, rng.poisson(rate*m/hz))) for _ in range(cells)]
    given = dict(stimulus=movie(n), spikes=spikes(n), test_stimulus=movie(n_test), test_spikes=[spikes(n_test) for _ in range(repeats)], hz=hz)
    return write_recording(path, **given | options)


@pytest.fixture
def path(tmp_path): return record(tmp_path/"rec.h5")


def set_time(path, part, time):
    with h5py.File(path, "r+") as f:
        del f[f"{part}/time"]
        f[f"{part}/time"] = time
    return path


even = np.arange(400)/100


# ---- units

@quick
@given(st.sampled_from([30., 50., 60., 100., 120.]), st.sampled_from([1e-3, 1e-6, 1e-9, 1e-4, 5e-5, 4e-5, 1/30_000, 2.5e-5, 2e-5]), st.floats(-100, 1e4), st.booleans())
def test_every_other_unit_is_refused_with_its_factor(hz, factor, start, as_integers):
    time = (start + np.arange(300)/hz)/factor
    if as_integers: time = np.rint(time).astype(np.int64)
    with pytest.raises(InputError, match="rising times in seconds") as e: check_clock(time, 300, "time")
    assert "multiply by" in str(e.value) and f"{factor:.9g}"[:7] in str(e.value)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("time, says", [(1000*even, "milliseconds.*0.001"), (30_000*even, "30 kHz"), (even/60, "minutes"), (np.arange(400), "frame numbers"), (even[::-1], "rising"),
                                        (np.random.default_rng(0).permutation(even), "rising|fall back"), (even*0, "rising"), (even*np.nan, "NaN"), (np.where(even == 1, even - .02, even), "fall back"),
                                        (np.sort(np.random.default_rng(0).uniform(0, 4, 400)), "at one rate"), (np.cumsum(np.tile([.01, .01, .03], 200))[:400], None)])
def test_no_clock(path, part, time, says):
    n = 400 if part == "train" else 200
    set_time(path, part, time[:n])
    if says is None: assert Recording(path).n_cells == 2
    else:
        with pytest.raises(InputError, match=f"{part}/time: expected.*({says})") as e: Recording(path)
        assert "\n" not in str(e.value)


@quick
@given(rates, st.floats(0, 1e5), st.integers(2, 500), st.floats(0, .1), st.integers(0, 99))
def test_a_clock_is_a_clock(hz, start, n, jitter, seed):
    "From any start, with some jitter, in float32 where that can tell frames apart"
    noise = np.random.default_rng(seed).uniform(-jitter, jitter, n)/hz
    time = start + np.arange(n)/hz + noise
    assert check_clock(time, n, "time") is not None
    assert abs(frame_rate(time)/hz - 1) < .25 and not len(starts_after_pauses(time)) and not unevenness(time)


@pytest.mark.parametrize("factor, says", [(1000, "milliseconds"), (30_000, "samples")])
def test_spikes_in_another_unit(tmp_path, factor, says):
    with pytest.raises(InputError, match=says): record(tmp_path/"x.h5", spikes=[np.array([1., 3.9])*factor]*2)


@pytest.mark.parametrize("hz", [.01, 0, -1, np.nan, np.inf, 30_000, "fast", [1, 2]])
def test_impossible_rates(tmp_path, hz):
    movie = np.zeros((9, 2, 2), np.uint8)
    with pytest.raises(InputError, match="hz: expected .* frames per second"):
        write_recording(tmp_path/"x.h5", movie, [[]], test_stimulus=movie, test_spikes=[[[]]], hz=hz)
    assert not list(tmp_path.iterdir())


# ---- drops, drift, pauses

def test_dropped_frames_are_said(path):
    set_time(path, "train", np.cumsum(np.where(np.arange(400) % 30 == 7, .02, .01)))
    with pytest.warns(UserWarning, match="train/time: 14 of 400 frames stayed about twice as long"): rec = Recording(path)
    assert rec.hz == 100 and rec.blocks.tolist() == [0]


def test_drift_is_said(path):
    set_time(path, "train", even + .02*np.sin(2*even))
    with pytest.warns(UserWarning, match="frames off an even one"): Recording(path)


def test_an_even_clock_is_not_talked_about(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Recording(path).hz == 100


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("pause", [.03, .1, .5, 1.1, 60., -1.])
def test_a_pause_starts_a_block(path, part, pause):
    "Whether the clock stops for some frames or starts again; no window spans it"
    n = 400 if part == "train" else 200
    set_time(path, part, even[:n] + (pause if pause > 0 else -1)*(np.arange(n) >= 100))
    rec = Recording(path)
    own = rec.train if part == "train" else rec.test
    assert own.blocks.tolist() == [0, 100] and own.hz == 100
    assert not np.isin(np.arange(100, 109), full_history(own, 10)).any()


def test_one_late_frame_is_no_pause(path):
    set_time(path, "train", even + .01*(np.arange(400) >= 100))
    with pytest.warns(UserWarning, match="1 of 400 frames"): assert Recording(path).blocks.tolist() == [0]


def test_blocks_are_given_stored_or_seen(path):
    "Stored starts and pauses add up; those that are given override both"
    with h5py.File(path, "r+") as f:
        f["train"].attrs["blocks"], f["test"].attrs["blocks"] = [0, 50], [0, 120]
        f["train/time"][300:] += 2
    assert Recording(path).blocks.tolist() == [0, 50, 300] and Recording(path).test.blocks.tolist() == [0, 120]
    rec = Recording(path, blocks=[0, 7], test_blocks=[0, 9])
    assert rec.blocks.tolist() == [0, 7] and rec.test.blocks.tolist() == [0, 9]
    for option in ("blocks", "test_blocks"):
        with pytest.raises(InputError, match="blocks: expected the start frame"): Recording(path, **{option: [5]})


def test_a_published_session_keeps_its_six_blocks(tmp_path):
    (tmp_path/"15-10-07").mkdir()
    path = record(tmp_path/"15-10-07"/"naturalscene.h5", n=600)
    assert Recording(path).blocks.tolist() == [0, 100, 200, 300, 400, 500] and Recording(path).test.blocks.tolist() == [0]
    set_time(path, "train", np.arange(600)/100 + .05*(np.arange(600) >= 250))
    assert Recording(path).blocks.tolist() == [0, 100, 200, 250, 300, 400, 500]
    set_time(path, "train", np.arange(600)/100 + 300*(np.arange(600) >= 250))
    assert Recording(path).blocks.tolist() == [0, 250]


def test_clips_of_the_test_movie(tmp_path):
    rec = Recording(record(tmp_path/"x.h5", test_blocks=[0, 80, 160]))
    assert rec.test.blocks.tolist() == [0, 80, 160] and len(full_history(rec.test, 10)) == 200 - 27
    with pytest.raises(InputError, match="test_blocks: expected the start frame"): record(tmp_path/"y.h5", test_blocks=[0, 200])


# ---- one rate

@pytest.mark.parametrize("test_hz, opens", [(60, False), (50, False), (103, False), (100.4, True), (99.8, True)])
def test_both_movies_run_at_one_rate(path, test_hz, opens):
    set_time(path, "test", np.arange(200)/test_hz)
    if opens: assert Recording(path).hz == 100
    else:
        with pytest.raises(InputError, match=f"one frame rate, found 100 frames per second in train/time and {test_hz}"): Recording(path)


@pytest.mark.parametrize("gone", ["train", "test"])
def test_a_part_without_a_clock_has_that_of_the_other(tmp_path, gone):
    path = record(tmp_path/"x.h5", hz=30.)
    with h5py.File(path, "r+") as f: del f[f"{gone}/time"]
    rec = Recording(path)
    assert rec.hz == rec.test.hz == 30


# ---- low frame rates

@quick
@given(st.sampled_from([2., 5., 7.8125, 10., 12., 15., 20., 24., 30., 60., 100.]), st.sampled_from(list(SMOOTHING_S)), st.integers(0, 9))
def test_nothing_is_empty_at_low_frame_rates(tmp_path_factory, hz, response, seed):
    "Counts of the repeats are the spikes, whatever the rate of the frames"
    path = record(tmp_path_factory.mktemp("slow")/"x.h5", hz=hz, n_test=150, rate=3., seed=seed)
    rec = Recording(path, response)
    np.testing.assert_allclose(rec.test.repeat_counts.mean(0), rec.test.counts, atol=1e-6)
    assert rec.test.repeat_rates.shape == (3, 150, 2) and guard_frames(rec.train, 3) >= 3
    assert min(map(len, split_frames(rec.train, history=3))) > 0


# ---- write_recording with measured times

@quick
@given(st.lists(st.integers(1, 2), min_size=2, max_size=60), st.floats(-10, 1e4), st.sampled_from([30., 100.]), st.integers(0, 99))
def test_measured_times_store_what_was_on_the_screen(tmp_path_factory, stayed, start, hz, seed):
    "Against a loop over spikes and frames"
    stayed = np.array([1]*len(stayed)*3 + stayed + [1])    # how long the last frame stayed, its start does not say
    rng = np.random.default_rng(seed)
    n = len(stayed)
    movie = rng.integers(0, 256, (n, 2, 2), dtype=np.uint8)
    time = start + (np.cumsum(stayed) - stayed)/hz
    spikes = start + np.sort(rng.integers(0, stayed.sum(), 40) + .5)/hz
    path = write_recording(tmp_path_factory.mktemp("grid")/"x.h5", movie, [spikes], test_stimulus=movie[:5], test_spikes=[[[]]], time=time)
    rec = Recording(path)
    np.testing.assert_array_equal(rec.train.stimulus, np.repeat(movie, stayed, 0))
    shown = np.searchsorted(time, spikes, side="right") - 1
    frame_of_tick = np.repeat(np.arange(n), stayed)
    seen = np.repeat(frame_of_tick, rec.train.counts[:, 0].astype(int))
    np.testing.assert_array_equal(seen, shown)


def test_measured_times_with_a_pause(tmp_path):
    movie = np.arange(400, dtype=np.uint8).repeat(4).reshape(400, 2, 2)
    time = 1000 + even + 7*(np.arange(400) >= 100)
    spikes = [np.array([999., 1000.5, 1003., 1008.005, 1010.999, 1011.5])]    # two of them outside the movie, one in the pause
    path = write_recording(tmp_path/"x.h5", movie, spikes, test_stimulus=movie, test_spikes=[[even[:3]]]*2, time=time, test_time=even)
    rec = Recording(path)
    assert rec.blocks.tolist() == [0, 100] and rec.hz == 100 and np.flatnonzero(rec.train.counts).tolist() == [50, 100, 399]
    np.testing.assert_allclose(rec.spikes["cell01"][:3], [.5, 1.005, 3.999])


@pytest.mark.parametrize("wrong, says", [(dict(time=1000*even), "milliseconds"), (dict(time=even[:-1]), "as many frames as there are times"), (dict(time=even, hz=60.), "found 100"),
                                         (dict(time=even + 1e4), "on the clock of the frames"), (dict(test_time=even[:200]*2), "found 50"), (dict(time="when"), "time: expected"),
                                         (dict(time=even, spikes=[[np.nan], []]), "finite")])
def test_impossible_measured_times(tmp_path, wrong, says):
    with pytest.raises(InputError, match=says): record(tmp_path/"x.h5", **wrong)
    assert not list(tmp_path.iterdir())


def test_grid_of_an_even_clock_is_the_clock():
    grid = even_grid(even)
    assert grid.hz == 100 and (grid.shown == 1).all() and grid.blocks.tolist() == [0]
    np.testing.assert_allclose(grid.time, even)


def test_a_part_of_ones_own_needs_no_clock(): assert Part(np.zeros((5, 2, 2), np.uint8), np.zeros((5, 1), np.float32), hz=7).hz == 7
