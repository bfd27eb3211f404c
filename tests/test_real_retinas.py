"The project's own model on recordings of real cells, where they are"
import os
import runpy
from pathlib import Path

import pytest

from retina_nb.data import Recording
from retina_nb.results import results_table
from retina_nb.training import train_run

data = Path(os.environ.get("RETINA_DATA") or "nowhere")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (data/"to_h5.py").exists(), reason="RETINA_DATA names no folder with real recordings")]


@pytest.mark.parametrize("name, column, least", [("salamander_flicker", "cc_norm", .93), ("flashes", "bits_per_spike", 3.1)])
def test_goals(name, column, least, tmp_path):
    runpy.run_path(str(data/"to_h5.py"))["to_h5"](name, tmp_path)
    run = train_run(Recording(tmp_path/f"{name}.h5"), "adaptive", tmp_path/"run", epochs=4, progress=False)
    assert results_table([run])[column][0] > least
