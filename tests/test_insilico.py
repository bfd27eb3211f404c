"The bench as a command: one sheet for several runs, and what it says of wrong input"
import numpy as np
import pandas as pd
import pytest

from conftest import record_noise
from forks import shell
from retina_nb.commands import retina_insilico
from retina_nb.data import InputError, Recording
from retina_nb.experiments import experiments
from retina_nb.insilico import ask, bench_table, index_figure
from retina_nb.training import load_run, train_run

small = dict(chans=[2, 2], ksizes=[3, 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two models of one recording, and one of another"
    folder = tmp_path_factory.mktemp("bench")
    one, other = (Recording(record_noise(folder/f"{cells}.h5", (12, 12), cells=cells)) for cells in (2, 3))
    options = dict(history=6, epochs=1, progress=False, scale="zscore")
    train_run(one, "bncnn", folder/"runs"/"net", settings=small, **options)
    train_run(one, "ln", folder/"runs"/"ln", **options)
    train_run(other, "ln", folder/"other", **options)
    return folder


@pytest.fixture
def few(monkeypatch):
    "Two experiments, to be quick"
    names = "step_polarity", "slow_contrast_adaptation"
    monkeypatch.setattr("retina_nb.insilico.experiments", {name: experiments[name] for name in names})


def test_two_runs_on_one_sheet(folder, few, capsys):
    out = folder/"sheet"
    retina_insilico(run=[str(folder/"runs"/"net"), str(folder/"runs"/"ln")], out=str(out), um_per_pixel=20)
    table = pd.read_csv(out/"insilico.csv")
    assert set(table.run) == {"net", "ln", "net, untrained", "ln, untrained"}
    assert (table[table.asked == "slow_contrast_adaptation"].verdict == "cannot exist in this model class").all()
    fields = table[table.asked == "receptive field"]
    assert set(fields.measure) == {"row", "column", "diameter_um", "latency_ms", "biphasic"} and len(fields) == 2*2*5
    assert {"transfer", "second_rate", "gain"} <= set(table[table.asked == "most exciting"].measure)
    page = (out/"insilico.html").read_text()
    assert "On the bench" in page and "20 µm a pixel" in page and "http" not in page
    assert {p.stem for p in (out/"figures").iterdir()} == {"receptive_fields", "exciting_net", "exciting_ln", "step_polarity",
                                                           "slow_contrast_adaptation"}
    said = capsys.readouterr().out
    assert "slow_contrast_adaptation" in said and "cannot" in said and "insilico.html" in said


def test_a_folder_of_runs_and_one_alone(folder, few):
    retina_insilico(run=str(folder/"runs"), out=str(folder/"all"))
    assert set(pd.read_csv(folder/"all"/"insilico.csv").run) >= {"net", "ln"}
    alone = ask([load_run(folder/"runs"/"ln")])
    assert list(alone.results) == ["ln", "ln, untrained"] and "transfer" not in alone.exciting["ln"].table
    assert bench_table(alone).run.nunique() == 2 and len(index_figure(alone, "step_polarity").axes) == 2


def test_diameters_in_micrometres(folder, few):
    run = load_run(folder/"runs"/"ln")
    narrow, wide = (ask([run], [], um).fields["ln"] for um in (10, 50))
    for cell in narrow: np.testing.assert_allclose(wide[cell].diameter_um, 5*narrow[cell].diameter_um)


def test_what_it_says_of_wrong_input(folder, few):
    with pytest.raises(InputError, match="runs of one recording"):
        retina_insilico(run=[str(folder/"runs"/"ln"), str(folder/"other")], out=str(folder/"x"))
    with pytest.raises(InputError, match="--run: expected a run folder"): retina_insilico(out=str(folder/"x"))
    with pytest.raises(InputError, match="expected a run folder with config.json"):
        retina_insilico(run=str(folder/"none"), out=str(folder/"x"))
    for um in (0, -5, float("nan")):
        with pytest.raises(InputError, match="--um_per_pixel"):
            retina_insilico(run=str(folder/"runs"/"ln"), um_per_pixel=um, out=str(folder/"x"))
    with pytest.raises(InputError, match="asked: expected some of"): ask([load_run(folder/"runs"/"ln")], ["colour"])


def test_exit_code(folder, tmp_path):
    process = shell("retina_insilico", "--run", folder/"none", folder=tmp_path, cwd=tmp_path)
    _, said = process.communicate()
    assert process.returncode == 2 and said.count("\n") == 1 and "expected a run folder" in said
