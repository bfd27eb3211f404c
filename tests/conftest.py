"Small simulated recordings in the published layouts, made once"
import signal

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from retina_nb.data import write_recording
from retina_nb.simulation import simulate_recording

# a shell that runs the tests in the background ignores Ctrl-C, and so would the commands that they start
signal.signal(signal.SIGINT, signal.default_int_handler)

TRAIN, TEST = 25, 5  # seconds


def parts_of(path):
    "Movies and spike times of a recording that the simulator wrote, each part from its own first frame"
    with h5py.File(path) as f:
        movies = {part: f[f"{part}/stimulus"][:] for part in ("train", "test")}
        repeats = len(f["test/repeats/cell01"])
        spikes = [x[:] for x in f["spikes"].values()]
    def between(start, end): return [s[(s >= start) & (s < end)] - start for s in spikes]
    return movies, between(0, TRAIN), [between(TRAIN + r*TEST, TRAIN + (r + 1)*TEST) for r in range(repeats)]


def write_session(path, simulated, cells):
    "The first cells of a simulated recording, as a published file holds them: no start of blocks, no truth"
    movies, spikes, repeats = simulated
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_recording(path, movies["train"], spikes[:cells], test_stimulus=movies["test"], test_spikes=[r[:cells] for r in repeats])


def record_noise(path, shape, cells=2, frames=1500, hz=100, silent=False, still=False):
    "Noise, and cells that follow a pixel of it"
    rng = np.random.default_rng(0)

    def movie(n):
        if still: return np.full((n, *shape), 90, np.uint8)
        return rng.integers(0, 256, (n, *shape), dtype=np.uint8)

    def spikes(m):
        rate = np.maximum(0, 128. - m.reshape(len(m), -1)[:, :cells])/4
        if silent: rate[:, 0] = 0
        return [np.repeat(np.arange(len(k)), k)/hz for k in rng.poisson(np.roll(rate, 2, 0)/100).T]

    shown, test = movie(frames), movie(400)
    return write_recording(path, shown, spikes(shown), test_stimulus=test, test_spikes=[spikes(test) for _ in range(3)],
                           hz=hz, blocks=[0, frames//2])


def one_sample_more(f):
    "Test responses and repeats that are one sample longer than the movie"
    for group in (f["test/response"], f["test/repeats"]):
        for name in list(group):
            longer = np.pad(group[name][:], ((0, 0), (0, 1)), mode="edge")
            del group[name]
            group[name] = longer


def as_21a(f):
    "Repeats by response type, spikes and spike-triggered averages under train"
    n, shown = [len(f[f"{part}/stimulus"])/100 for part in ("train", "test")], len(f["test/repeats/cell01"])
    counts = np.array([[np.histogram(s[:] - n[0] - r*n[1], np.arange(round(n[1]*100) + 1)/100)[0] for s in f["spikes"].values()] for r in range(shown)])
    del f["test/repeats"]
    for width in (.5, 1, 2): f[f"test/repeats/firing_rate_{width*10:.0f}ms"] = gaussian_filter1d(counts*100., width, mode="constant")
    f.move("spikes", "train/spikes")
    for name in f["train/spikes"]: f[f"train/stas/{name}"] = np.zeros((40, 50, 50))


@pytest.fixture(scope="session")
def sessions(tmp_path_factory):
    "Paths of recordings as published, by session and movie: 9, 14 and 27 cells"
    folder, made = tmp_path_factory.mktemp("ganglion_cell_data"), {}
    for movie, repeats, cells in (("naturalscene", 5, 27), ("whitenoise", 6, 9)):
        raw = simulate_recording(folder/f"{movie}.h5", seconds=TRAIN, test_seconds=TEST, repeats=repeats, cells=cells, stimulus=movie)
        simulated = parts_of(raw)
        raw.unlink()
        for session, n, edit in (("15-10-07", 9, one_sample_more), ("15-11-21a", 14, as_21a), ("15-11-21b", 27, None)):
            if n > cells: continue
            made[session, movie] = path = write_session(folder/session/f"{movie}.h5", simulated, n)
            if edit:
                with h5py.File(path, "r+") as f: edit(f)
    return made


@pytest.fixture(scope="session", params=[("15-10-07", "naturalscene"), ("15-10-07", "whitenoise"), ("15-11-21a", "naturalscene"), ("15-11-21b", "naturalscene")],
                ids="-".join)
def session(request, sessions):
    "Each of these recordings, one after the other"
    return sessions[request.param]


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    "Files of a few kB, with frames of 6 x 7 pixels and three cells, in both forms of the repeats"
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    def movie(n): return rng.integers(0, 256, (n, 6, 7), dtype=np.uint8)
    def spikes(seconds): return [np.sort(rng.uniform(0, seconds, 30)) for _ in range(3)]
    made = {}
    for name, edit in (("by_cell", lambda f: None), ("by_type", as_21a)):
        made[name] = write_recording(folder/f"{name}.h5", movie(400), spikes(4), test_stimulus=movie(200), test_spikes=[spikes(2) for _ in range(4)])
        with h5py.File(made[name], "r+") as f:
            edit(f)
            if "train/stas" in f: del f["train/stas"]
    return made
