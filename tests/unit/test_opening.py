"""Which values the log of a job hides."""

from dataclasses import replace

from given import a_claim, a_job
from launcher.output.opening import hidden
from launcher.secret import Secret
from launcher.settings import Settings
from launcher.wire.jobs import Source


def test_everything_that_lets_somebody_in_is_hidden():
    """The job's token, the pool's, and credentials in URLs are secrets like the job's own."""
    settings = Settings()
    settings = replace(
        settings,
        identity=replace(settings.identity, token=Secret("pool-token")),
        network=replace(settings.network, https_proxy=Secret("http://me:pr0xy@p:1")),
    )
    job = a_job(source=Source(url="https://x-access-token:t0ken%2F@git.example/a"))
    found = set(hidden(a_claim(job), settings, ()))
    assert {b"fencing-token", b"pool-token", b"pr0xy", b"t0ken%2F", b"t0ken/"} <= found
    token_only = a_job(source=Source(url="https://ghp_token@git.example/a"))
    assert b"ghp_token" in hidden(a_claim(token_only), Settings(), ())
    ssh = a_job(source=Source(url="ssh://git@git.example/a"))
    assert b"git" not in hidden(a_claim(ssh), Settings(), ())
