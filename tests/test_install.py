"The package as its users get it: built, installed into a clean environment, with the current fastcore."
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]


def run(*args, **kwargs):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_installs_with_fastcore_2(tmp_path):
    "Everything but the package and fastcore comes from this environment, so that nothing large is fetched"
    source, venv = tmp_path / "source", tmp_path / "venv"
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "*.h5"))
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "python", "-m", "pip", "-qq", "install", "--no-deps", source, "fastcore>=2")
    site = run(venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "others.pth").write_text(sysconfig.get_path("purelib"))

    modules = [p.stem for p in (root / "retina_nb").glob("[!_]*.py")]
    found = run(venv / "bin" / "python", "-c", "import fastcore, retina_nb, importlib, sys\n"
                "for m in sys.argv[1:]: importlib.import_module('retina_nb.' + m)\n"
                "print(fastcore.__version__, retina_nb.__file__)", *modules, cwd=tmp_path)
    assert found.startswith("2.") and site in found

    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    for script in parser["DEFAULT"]["console_scripts"].split():
        assert "usage" in run(venv / "bin" / script.partition("=")[0], "--help", cwd=tmp_path)
