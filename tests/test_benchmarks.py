"The benchmark's command, and its arithmetic; the measurements themselves run in the notebook"
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import retina_nb.benchmarks as benchmarks
from retina_nb.benchmarks import machine
from retina_nb.commands import retina_bench
from retina_nb.data import InputError, Recording
from retina_nb.timing import Case, noise_recording, side_by_side, timed


def test_side_by_side():
    "In turn, and the median of the ratios"
    asked = []
    def one(name, seconds): return lambda: asked.append(name) or seconds.pop(0)
    ours, other, ratio = side_by_side(one("a", [1., 9., 2.]), one("b", [2., 9., 6.]), rounds=3)
    assert asked == ["a", "b"]*3 and (ours, other, ratio) == (2., 6., 2.)
    assert timed(lambda: time.sleep(.01), 3, warm=1) >= .03


def test_command(tmp_path, monkeypatch, capsys):
    "A table and a figure; neither tells the name of the machine, nor a path on it"
    table = pd.DataFrame(dict(what=["loop / bare step", "lazily / in memory", "memory"], first=[3., 2., 1.],
                              second=[1., 2., 5.], unit="samples/s", ratio=[3., .5, np.nan]))
    open_before = plt.get_fignums()
    asked = []
    monkeypatch.setattr(benchmarks, "run_benchmarks", lambda **how: asked.append(how) or table)
    retina_bench(out=str(tmp_path/"bench"), quick=True)
    retina_bench(out=str(tmp_path/"bench"), frames=360_000)
    assert asked == [benchmarks.quick_form, dict(frames=360_000)]
    assert sorted(p.name for p in (tmp_path/"bench").iterdir()) == ["benchmarks.csv", "benchmarks.png"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/"bench/benchmarks.csv"), table)
    assert plt.get_fignums() == open_before  # no figure stays open
    assert "/" not in machine().replace("Hz / ", "") and re.search(r"\d+ threads?, torch \d", machine())
    with pytest.raises(InputError, match="--frames"): retina_bench(out=str(tmp_path/"x"), frames=10)


def test_case_of_stretches(tmp_path):
    "What a batch is made of may be chosen; a step's frames are counted as they are"
    rec = Recording(noise_recording(tmp_path/"noise.h5", 400))
    def case(batches): return Case(rec, "bncnn", 12, batches=batches, chans=[2, 2], ksizes=[5, 3])
    stretches, windows = case("stretches"), case("windows")
    assert (stretches.n_items, stretches.frames_in_batch) == (8, 64) and (windows.n_items, windows.frames_in_batch) == (32, 32)
    assert stretches.time_bare_steps(1) > 0
