"""What people see when a registry or an engine fails in earnest."""

import pytest

from support.explained import assert_explained
from support.real_failures import CAUSES


pytestmark = [
    pytest.mark.services,
    # docker-py leaves a socket to the garbage collector when it cannot connect.
    pytest.mark.filterwarnings("ignore:unclosed .*socket:ResourceWarning"),
]


@pytest.mark.parametrize("code", CAUSES)
def test_every_code_of_images_and_engines(monkeypatch, code):
    """A failure ends the run with its code, is explained in the log, and is counted."""
    with CAUSES[code](monkeypatch) as (place, record):
        assert_explained(record, place.metrics, code)
