"""How often one caller may ask."""

from launcher.controlplane import rates
from launcher.controlplane.rates import Rates


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_bucket_drips():
    """A burst at once, then so many a second, and each caller for itself."""
    clock = Clock()
    limit = Rates(per_second=2, burst=3, clock=clock)
    assert [limit.wait_of("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert limit.wait_of("b") == 0
    clock.now += 0.5
    assert [limit.wait_of("a") for _ in range(2)] == [0, 0.5]
    clock.now += 3600
    assert [limit.wait_of("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_callers_are_forgotten_in_the_end(monkeypatch):
    """Strangers cannot fill the memory."""
    monkeypatch.setattr(rates, "_REMEMBERED", 10)
    limit = Rates(per_second=1, burst=1)
    for number in range(1000):
        limit.wait_of(f"caller-{number}")
    assert len(limit._buckets) == 10


def test_who_asks_too_often_is_told_to_wait(site, api, monkeypatch):
    """With 429 and the seconds; strangers are no burden to those who are signed in."""
    slow = {"127.0.0.1"}
    monkeypatch.setattr(Rates, "wait_of", lambda _, caller: 1.2 * (caller in slow))
    answer = site.stranger().post("{viewer{id}}")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "2")
    assert answer.json()["errors"][0]["message"].startswith("too many requests")
    assert api("{viewer{id}}")["viewer"]
    slow.add("api::ci")
    assert api.post("{viewer{id}}").status == 429


def test_strangers_send_little(api, site):
    """Whoever is signed in may send a file; others have nothing of that size to say."""
    document = "{viewer{id}}" + " " * (100 << 10)
    assert site.stranger().post(document).status == 413
    assert api.post(document).status == 200
    assert api.post(document + " " * (4 << 20)).status == 413
