"Public recordings: the authors' files in every shape, and the whole way from a server"
import hashlib
import io
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from retina_nb import public
from retina_nb.commands import retina_fetch
from retina_nb.data import InputError, Recording
from retina_nb.public import flash_movie, read_flashes
from test_data import explained, fetch, files, server  # noqa: F401  fixtures

START, STEP, N = 123.45, .120017, 3000    # s, s, steps: six minutes
PLACE = "encoding_surprise-08af8b0/data/original_exp/spike_times"


def stimulus(seed=0):
    rng = np.random.default_rng(seed)
    return START + np.arange(N)*STEP, rng.integers(0, 2, N)


def spikes(seed): return START + np.sort(np.random.default_rng(seed).uniform(-2, N*STEP + 2, 2000).round(5) + 4e-6)


def write_cell(path, layout="times first", seed=0, times=None, flash=None, its_spikes=None):
    "A cell as its authors write it: MATLAB's axes are the other way round"
    t, f = stimulus()
    rows = np.stack([t if times is None else times, f if flash is None else flash])
    if layout == "flashes first": rows = rows[::-1]
    if layout == "columns": rows = rows.T
    with h5py.File(path, "w") as file:
        file["stimulus"] = rows
        file["spikes"] = (spikes(seed) if its_spikes is None else its_spikes)[None]
    return path


@pytest.mark.parametrize("layout", ["times first", "flashes first", "columns"])
def test_reads_the_authors_files(tmp_path, layout):
    "Movie and counts against a loop over steps, and numpy's histogram; cells by number"
    cells = [write_cell(tmp_path/f"cell_{number}.h5", layout, seed=number) for number in (12, 7, 101)]
    rec = Recording(read_flashes(cells, tmp_path/"flashes.h5"))
    times, flash = stimulus()
    lit = np.zeros(len(rec.train) + len(rec.test), np.uint8)
    for t, bit in zip(times, flash):
        first = int(np.floor((t - START)*50 + .5))
        lit[first:first + 2] = 255*bit
    movie = np.concatenate([rec.train.stimulus, rec.test.stimulus])
    assert movie.shape == (round((N - 1)*STEP*50) + 6, 4, 4) and (movie == lit[:, None, None]).all()
    assert rec.hz == 50 and rec.test.repeats.shape == (1, 15_000, 3) and len(rec.test) == 15_000
    counts = np.concatenate([rec.train.counts, rec.test.counts])
    edges = np.arange(len(movie) + 1)/50
    for i, number in enumerate((7, 12, 101)): assert (counts[:, i] == np.histogram(spikes(number) - START, edges)[0]).all()


def test_every_flash_has_two_frames():
    "Also where a step begins in the middle of a frame"
    movie = flash_movie(np.arange(200)*.13, np.ones(200))[:, 0, 0]
    assert np.diff(np.flatnonzero(movie)).max() == 6 and (movie > 0).sum() == 400


def uneven(): return np.append(stimulus()[0][:-1], START + 1000)


@pytest.mark.parametrize("wrong, words", [
    (dict(flash=np.arange(N) % 3 + 1), "cell_2.h5: stimulus: expected 0 or 1"),
    (dict(times=uneven()), "cell_2.h5: stimulus: expected a time every 0.12 s, found steps of"),
    (dict(times=stimulus()[0]*np.nan), "cell_2.h5: stimulus: expected a time every 0.12 s"),
    (dict(flash=stimulus(1)[1]), "cell_2.h5: stimulus: expected the same as in cell_1.h5"),
    (dict(its_spikes=np.array([np.nan, START])), "cell_2.h5: spikes: expected times in seconds, found NaN or infinite ones"),
    (dict(its_spikes=np.array([b"late"])), "cell_2.h5: expected an HDF5 file with 'stimulus' and 'spikes'"),
])
def test_says_what_is_wrong(tmp_path, wrong, words):
    cells = [write_cell(tmp_path/"cell_1.h5"), write_cell(tmp_path/"cell_2.h5", **wrong)]
    with pytest.raises(InputError, match=words): read_flashes(cells, tmp_path/"flashes.h5")
    assert files(tmp_path) == ["cell_1.h5", "cell_2.h5"]


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="notes.h5: expected files named cell_1.h5"): read_flashes([tmp_path/"notes.h5"], tmp_path/"x.h5")
    (tmp_path/"cell_1.h5").write_bytes(b"none")
    with pytest.raises(InputError, match="cell_1.h5: expected an HDF5 file"): read_flashes([tmp_path/"cell_1.h5"], tmp_path/"x.h5")
    with h5py.File(tmp_path/"cell_1.h5", "w") as f: f["spikes"] = f["stimulus"] = np.zeros(4)
    with pytest.raises(InputError, match=r"expected a time and a 0 or 1 for each step, found shape \(4,\)"): read_flashes([tmp_path/"cell_1.h5"], tmp_path/"x.h5")
    write_cell(tmp_path/"cell_1.h5")
    with pytest.raises(InputError, match="expected more than the 400 s that are held out, found 360"): read_flashes([tmp_path/"cell_1.h5"], tmp_path/"x.h5", test_seconds=400)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    "The authors' repository as GitHub packs it"
    folder, data = tmp_path_factory.mktemp("authors"), io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        z.writestr("encoding_surprise-08af8b0/README.md", "# encoding_surprise")
        z.writestr("encoding_surprise-08af8b0/data/repeated_exp/spike_times/cell_1.h5", b"another experiment")
        for number in (12, 7): z.write(write_cell(folder/f"cell_{number}.h5", seed=number), f"{PLACE}/cell_{number}.h5")
    return data.getvalue()


def test_fetches(server, fetch, archive, tmp_path):  # noqa: F811
    "One line on stdout, whose work it is on stderr, one download; then a choice of cells"
    server.files["flashes.zip"] = archive
    url = f"{server.url}/flashes.zip"
    code, out, err = fetch(tmp_path, "--recording", "flashes", "--url", url)
    assert code == 0 and out.splitlines() == [str(tmp_path/"flashes.h5")], err
    assert "MIT" in err and "10.1371/journal.pcbi.1011965" in err
    assert files(tmp_path) == [f"{PLACE}/cell_12.h5", f"{PLACE}/cell_7.h5", "flashes.h5", "flashes.zip", "flashes.zip.sha256"]
    assert Recording(tmp_path/"flashes.h5").n_cells == 2
    assert fetch(tmp_path, "--recording", "flashes", "--url", url, "--only", "original_exp/spike_times/cell_7")[0] == 0
    assert Recording(tmp_path/"flashes.h5").n_cells == 1 and server.asked == ["/flashes.zip"]


def test_breaks_off(server, fetch, archive, tmp_path):  # noqa: F811
    "Half a download is none, and the next try is whole"
    server.files["flashes.zip"] = archive
    args = tmp_path, "--recording", "flashes", "--url", f"{server.url}/cut/flashes.zip"
    result = fetch(*args)
    assert explained(result, "flashes.zip", "again") and not files(tmp_path), result
    server.mended = True
    assert fetch(*args)[0] == 0 and Recording(tmp_path/"flashes.h5").n_cells == 2


def test_mistakes(server, fetch, archive, tmp_path):  # noqa: F811
    result = fetch(tmp_path/"a", "--recording", "unknown")
    assert explained(result, "expected one of stanford, flashes, found 'unknown'") and not files(tmp_path), result
    result = fetch(tmp_path/"b", "--recording", "flashes", "--url", f"{server.url}/data.zip")
    assert explained(result, "expected files with 'data/original_exp/spike_times/' in their path"), result
    server.files["flashes.zip"] = archive
    result = fetch(tmp_path/"c", "--recording", "flashes", "--url", f"{server.url}/flashes.zip", "--only", "repeated_exp/spike_times")
    assert explained(result, "cell_1.h5: expected an HDF5 file") and "flashes.h5" not in files(tmp_path/"c"), result


def test_checksum(server, archive, tmp_path, monkeypatch, capsys):  # noqa: F811
    "Where it is known, another archive is refused and removed"
    server.files["flashes.zip"] = archive
    known = public.public_recordings["flashes"]
    def pin(checksum): monkeypatch.setitem(public.public_recordings, "flashes", known._replace(checksum=checksum))
    def get(): retina_fetch(str(tmp_path/"data"), f"{server.url}/flashes.zip", recording="flashes")
    pin("0"*64)
    with pytest.raises(InputError, match="flashes.zip: expected to download an archive, found: .*hash"): get()
    assert not files(tmp_path/"data")
    pin(hashlib.sha256(archive).hexdigest())
    get()
    assert Recording(tmp_path/"data"/"flashes.h5").n_cells == 2


def test_no_room(server, archive, tmp_path, monkeypatch):  # noqa: F811
    "Said before anything is unpacked"
    server.files["flashes.zip"] = archive
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(InputError, match="flashes.zip: expected room for 0 MB of files, found 0 MB; make room"):
        public.fetch_public(tmp_path, "flashes", f"{server.url}/flashes.zip")
    assert files(tmp_path) == ["flashes.zip", "flashes.zip.sha256"]
