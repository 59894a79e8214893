"""How long the outputs of a stack may be on their way."""

import pytest

from launcher import run_types
from launcher.errors import JobInvalid
from launcher.run_types import OUTPUTS_TIMEOUT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 120.0), ("30s", 30.0), ("1500ms", 1.5), ("10m", 600.0), ("2h", 600.0)],
)
def test_a_run_says_how_long(text, seconds):
    """[capability 144] A duration counts up to ten minutes; without one there is a default."""
    assert seconds == run_types.outputs_seconds({OUTPUTS_TIMEOUT: text})


@pytest.mark.parametrize("text", ["soon", "30", "-1s"])
def test_what_is_no_duration_is_said(text):
    """[capability 144] Nonsense is named, with the variable that holds it."""
    with pytest.raises(JobInvalid, match=OUTPUTS_TIMEOUT):
        run_types.outputs_seconds({OUTPUTS_TIMEOUT: text})
