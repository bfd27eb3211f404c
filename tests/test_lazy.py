"Recordings that are read piece by piece: the same numbers, little memory, clear words about damage"
import pickle
import sys

import h5py
import numpy as np
import pytest
import torch
from forks import start
from hypothesis import given, settings, strategies as st

from retina_nb.data import Frames, InputError, LazyMovie, Recording, write_recording
from retina_nb.training import EpochSampler, fit, model_for, predict, train_run

rng = np.random.default_rng(0)


def write(path, n, chunks=None, cells=2, blocks=(0,), size=(50, 50)):
    def pieces():
        for i in range(0, n, 5000): yield rng.integers(0, 256, (min(5000, n - i), *size), dtype=np.uint8)
    spikes = [np.sort(rng.uniform(0, n/100, n//30)) for _ in range(cells)]
    write_recording(path, pieces(), spikes, test_stimulus=np.zeros((100, *size), np.uint8), test_spikes=[[[.5]]*cells]*2, blocks=blocks)
    if chunks:
        with h5py.File(path, "r+") as f:
            movie = f["train/stimulus"][:]
            del f["train/stimulus"]
            f.create_dataset("train/stimulus", data=movie, **chunks)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory): return write(tmp_path_factory.mktemp("lazy")/"noise.h5", 4000, blocks=[0, 1500, 1510, 2500], size=(10, 11))


layouts = {"as we write it": {}, "contiguous": {"chunks": None}, "compressed": {"chunks": (50, 5, 11), "compression": "gzip"}, "a frame at a time": {"chunks": (1, 10, 11)},
           "all at once": {"chunks": (3000, 10, 11)}}


@pytest.mark.parametrize("layout", layouts)
def test_any_layout(tmp_path, layout):
    rec = Recording(write(tmp_path/"noise.h5", 3000, layouts[layout], size=(10, 11)))
    lazy = Recording(rec.path, in_memory=False)
    np.testing.assert_array_equal(lazy.train.stimulus, rec.train.stimulus)
    x, y = Frames(rec.train, history=40).__getitems__(at := rng.integers(0, 2900, 300))
    lazy_x, lazy_y = Frames(lazy.train, history=40).__getitems__(at)
    assert torch.equal(x, lazy_x) and torch.equal(y, lazy_y)


index = st.one_of(st.integers(-4000, 3999), st.slices(4000), st.lists(st.integers(-4000, 3999), max_size=30).map(np.array))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(index, st.sampled_from([(), (3,), (slice(2, 9, 3), slice(None)), (slice(None), 5)]))
def test_any_index(path, first, rest):
    "With so little memory that pieces have to make way for others"
    movie = Recording(path).train.stimulus
    lazy = LazyMovie(path, "train/stimulus", len(movie), keep=2**15)
    if isinstance(first, np.ndarray): first = first.astype(int)
    np.testing.assert_array_equal(lazy[(first, *rest)], movie[(first, *rest)])
    np.testing.assert_array_equal(lazy[first], movie[first])


def test_index_beyond_the_end(path):
    movie = LazyMovie(path, "train/stimulus", 3990)
    assert len(movie[:]) == len(list(movie)) == 3990
    for at in (3990, -3991, [0, 4000]):
        with pytest.raises(IndexError): movie[at]


@pytest.mark.parametrize("clip", [1, 16])
def test_order(clip):
    "Every sample once an epoch; what is read at a time is neighbours, and from many places; the same for the same seed"
    order = EpochSampler(10_007, seed=3, clip_length=clip, segment=240, buffer_segments=8)
    a, again = list(order), list(order)
    order.set_epoch(1)
    b = list(order)
    assert a == again != b and sorted(a) == sorted(b) == list(range(10_007))
    read = np.array(a[:8*240])//240
    assert len(np.unique(read)) in (8, 9) and len(np.unique(read[:256])) >= 4  # 9: the last segment is short
    assert list(EpochSampler(500, 3, clip)) == list(EpochSampler(500, 3, clip, segment=500, buffer_segments=8))


def trained(rec, out, model="bncnn", **more):
    torch.manual_seed(0)
    settings = {"ln": {}, "cnnbilstm": dict(hidden=4), "stacked": dict(pool=1)}.get(model, {}) | (dict(chans=[2, 2], ksizes=[3, 3], noise=0) if model != "ln" else {})
    return train_run(rec, model, out, 5, settings, **{**dict(scale="zscore", epochs=1, progress=False), **more})


@pytest.mark.parametrize("model", ["bncnn", "cnnbilstm", "stacked", "ln"])
def test_training(path, tmp_path, model):
    "Reading ahead in two processes; the scaling is that of the whole movie; predictions are those from memory"
    rec, lazy = Recording(path), Recording(path, in_memory=False)
    run = trained(lazy, tmp_path/"run", model)
    assert run.config["in_memory"] is False and not run.recording.in_memory
    assert run.config["scaling"] == vars(Frames(rec.train, run.split[0], 5, "zscore").scale)
    np.testing.assert_array_equal(predict(run, lazy.train.stimulus, rec.blocks), predict(run, rec.train.stimulus, rec.blocks))


def test_resume(path, tmp_path):
    "With another number of processes that read"
    rec, lazy = Recording(path), Recording(path, in_memory=False)
    run = trained(lazy, tmp_path/"run", epochs=2)
    trained(lazy, tmp_path/"again")
    again = trained(lazy, tmp_path/"again", epochs=2, resume=True, workers=0)
    np.testing.assert_array_equal(run.history.drop(columns="seconds"), again.history.drop(columns="seconds"))
    with pytest.raises(InputError, match="another in_memory"): trained(rec, tmp_path/"run", epochs=2, resume=True)


def test_damage(tmp_path):
    "A piece that can't be read ends the training with one line, in the process that reads ahead and without one"
    path = write(tmp_path/"movie.h5", 4000, dict(chunks=(100, 10, 11), fletcher32=True), size=(10, 11))
    with h5py.File(path) as f: at = f["train/stimulus"].id.get_chunk_info(20).byte_offset
    with open(path, "r+b") as f:
        f.seek(at + 1000)
        f.write(b"damage")
    rec = Recording(path, in_memory=False)
    for workers in (0, 1):
        with pytest.raises(InputError, match="train/stimulus: .*damaged") as e:
            fit(model_for(rec, chans=[2, 2], ksizes=[3, 3]), rec, tmp_path/f"run{workers}", epochs=1, progress=False, workers=workers)
        assert "\n" not in str(e.value) and str(e.value).startswith(str(path))


measure = '''
import sys
import numpy as np, torch
from retina_nb.data import Frames, Recording
from retina_nb.training import BatchSampler, EpochSampler, fit, load_run, model_for, predict
rec = Recording(sys.argv[1], in_memory=False)
frames = Frames(rec.train, history=2, scale="zscore")
mixed = EpochSampler(len(frames), 0, segment=240, buffer_segments=rec.train.stimulus.n_segments_in_cache(242))
for batch in BatchSampler(mixed, 64): frames.__getitems__(batch)
class Run: model, scale, name = model_for(rec, history=2, chans=[1, 1], ksizes=[3, 3]).eval(), frames.scale, "run"
predict(Run, rec.train.stimulus, batch_size=32)
print(next(int(l.split()[1])*1024 for l in open("/proc/self/status") if l.startswith("VmHWM")))
'''


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory(tmp_path):
    "Reading all batches of an epoch and predicting a whole movie take the memory of the kept pieces, however long the movie is"
    script, peaks = tmp_path/"measure.py", []
    script.write_text(measure)
    for n in (6_000, 15_000):
        process = start(script, write(tmp_path/f"{n}.h5", n, size=(100, 100)))
        out, err = process.communicate()
        assert process.returncode == 0, (process.returncode, err)
        peaks.append(int(out.split()[-1]))
    assert (peaks[1] - peaks[0])/(9_000*10_000) < .25  # of what the movie takes: rates and the order of the frames do grow, and peaks differ by some MB


def test_another_process_keeps_its_own(path):
    "Where processes are not forks, torch would share the memory of tensors with them"
    movie = LazyMovie(path, "train/stimulus", 3990, keep=2**15)
    movie[[5, 3000]]
    other = pickle.loads(pickle.dumps(movie))
    assert other.cache is None and (other.slot_of_piece == -1).all() and other.shape == movie.shape and other.n_slots == movie.n_slots
    np.testing.assert_array_equal(other[[5, 3000]], movie[[5, 3000]])


def test_pieces_used_last_are_kept(tmp_path):
    "Pieces that the cache holds are not read again; the one that was not used for longest makes way"
    movie = LazyMovie(write(tmp_path/"noise.h5", 3000, {"chunks": (32, 10, 11)}, size=(10, 11)), "train/stimulus", 3000, keep=2**15)
    length, n = movie.piece_length, movie.n_slots
    def read(*pieces): movie.index_select(0, torch.tensor(pieces)*length)
    read(*range(n))
    read(0)
    read(n)  # in the place of 1, as 0 was used since
    assert set(movie.piece_in_slot.tolist()) == {0, *range(2, n + 1)}
    slots = movie.slot_of_piece.clone()
    read(*range(2, n + 1), 0)
    assert torch.equal(movie.slot_of_piece, slots)
    for piece, slot in enumerate(slots.tolist()): assert slot == -1 or movie.piece_in_slot[slot] == piece
