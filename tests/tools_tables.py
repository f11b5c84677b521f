"""What the tests of `torchrnn classify` share: tables, and what is made of them or said of them."""

import json

import pytest

from torchrnn.tools.classify import survey
from torchrnn.tools.classify.data import Data
from torchrnn.tools.classify.learned import learn
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import UsageError


def write(folder, rows, name="t.csv"):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        path.write_text("\n".join(rows) + "\n")
    return path


def prepare(path, **options):
    """Data and counts of a file."""
    settings = ClassifySettings(**{"threads": 1, "batch_size": 4, **options})
    settings.check_columns()
    found = survey.sources([path], settings)
    learned, counts = learn(found, settings)
    return Data(found, learned, settings), counts


def refused(path, **options):
    with pytest.raises(UsageError) as caught:
        prepare(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
