"What stands beside a parameter is shown by `help`, for every public function"
import importlib
import inspect
import pydoc

import pytest
from fastcore.docments import docments
from test_house import modules

from retina_nb.data import Recording, write_recording
from retina_nb.training import fit, train_run


@pytest.mark.parametrize("thing", [fit, train_run, write_recording, Recording], ids=lambda t: t.__name__)
def test_help(thing):
    shown = " ".join(pydoc.render_doc(thing, renderer=pydoc.plaintext).split())
    comments = [text for name, text in docments(thing).items() if text and name != "self"]
    assert len(comments) > 3 and not [text for text in comments if " ".join(text.split()) not in shown]


@pytest.mark.parametrize("module", modules)
def test_every_comment_is_in_the_docstring(module):
    module = importlib.import_module(f"retina_nb.{module}")
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if not inspect.isfunction(thing): continue
        missing = [text for text in docments(thing).values() if text and " ".join(text.split()) not in " ".join((thing.__doc__ or "").split())]
        assert not missing, f"{name}: {missing}"
