from pathlib import Path

import pytest

from structlog.testing import capture_logs

from launcher.disk import Disks, used_percent


def test_as_df_counts(tmp_path):
    """What is in use is a share of what can be used at all."""
    assert 0 < used_percent(tmp_path) <= 100


def disks(readings, threshold=90):
    return Disks(
        map(Path, readings), threshold=threshold, measure=lambda p: readings[str(p)]
    )


@pytest.mark.parametrize(
    ("one", "other", "fit"), [(10, 89.9, True), (10, 90, False), (100, 0, False)]
)
def test_the_fullest_counts(one, other, fit):
    """At the threshold of any disk no run begins, and the sentence says which one."""
    here = disks({"/state": one, "/images": other})

    assert fit == (here.trouble() is None)
    assert max(one, other) == here.used()
    if not fit:
        assert ("/state" if one >= 90 else "/images") in here.trouble()


def test_an_engine_that_is_elsewhere(tmp_path):
    """A path that is not on this machine is nobody's trouble."""
    here = Disks([tmp_path / "not-here"], threshold=1)

    assert None is here.trouble()
    assert 0.0 == here.used()


def test_said_once():
    """That the disk is full is logged when it begins and when it ends."""
    readings = {"/": 95}
    here = disks(readings)
    with capture_logs() as events:
        assert [True, True] == [here.unfit(), here.unfit()]
        readings["/"] = 50
        assert [False, False] == [here.unfit(), here.unfit()]

    assert ["disk.full", "disk.room_again"] == [event["event"] for event in events]
