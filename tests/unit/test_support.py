import json

from given import A_KEY, a_claim, a_job
from launcher import support, telemetry
from launcher.journal import Held, Journal
from launcher.model import Outcome
from launcher.output.needles import needles
from launcher.settings import Settings
from launcher.wire.jobs import RunState, Variable
from launcher.wire.messages import Offer, Verdict


VARIABLES = {
    "SPACELIFT_TOKEN": "the-token-of-the-pool",
    "SPACELIFT_POOL_PRIVATE_KEY": "the-private-key-of-the-pool",
    "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG": '{"auths":{"r.example.com":{"auth":"c29tZW9uZTpvZi10aGUtcmVnaXN0cnk="}}}',
    "SPACELIFT_WHITELIST_ENVS": "OWNERS,PLAIN",
    "SPACELIFT_MASK_ENVS": "OWNERS",
    "OWNERS": "a value of the owner's",
    "PLAIN": "a plain value",
    "SPACELIFT_METADATA_team": "platform-team",
    "HTTPS_PROXY": "http://user:of-the-proxy@proxy.example.com:3128",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "https://someone:of-the-collector@otel.example.com",
    "OTEL_EXPORTER_OTLP_HEADERS": "key=of-the-header",
    "DOCKER_HOST": "tcp://127.0.0.1:2375",
}
SECRETS = [
    VARIABLES["SPACELIFT_TOKEN"],
    VARIABLES["SPACELIFT_POOL_PRIVATE_KEY"],
    VARIABLES["OWNERS"],
    "c29tZW9uZTpvZi10aGUtcmVnaXN0cnk=",
    "of-the-registry",
    "of-the-proxy",
    "of-the-collector",
    "of-the-header",
]


def made(**changes):
    given = {
        "readyz": {},
        "metrics": "",
        "journal": None,
        "log": (),
        "engine": {},
        "disks": {},
    }
    return support.parts(Settings.from_environ(VARIABLES), **{**given, **changes})


def test_settings_without_secrets():
    """
    Every variable is there, with a value only where that can be no secret.
    """
    settings = json.loads(made()["settings.json"])
    text = json.dumps(settings)

    for secret in SECRETS:
        assert secret not in text
    for hidden in ("platform-team", "a plain value"):
        assert hidden not in text
    assert "set, and secret" == settings["SPACELIFT_TOKEN"]
    assert "https://otel.example.com" == settings["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert "tcp://127.0.0.1:2375" == settings["DOCKER_HOST"]
    assert 4200.0 == settings["SPACELIFT_LAUNCHER_RUN_TIMEOUT"]
    assert len(settings) > 60


def test_what_slipped_through():
    """
    A secret of the settings that turns up anywhere is masked, in every spelling.
    """
    log = [
        form.decode("utf-8", "replace") + "\n"
        for secret in SECRETS
        for form in needles([secret.encode()])
    ]
    assert len(log) > 30
    text = made(log=log, metrics=SECRETS[0], readyz={"why": SECRETS[2]})

    for secret in SECRETS:
        for form in needles([secret.encode()]):
            assert all(form not in each.encode() for each in text.values())


def test_how_far_jobs_have_got(tmp_path):
    """
    Of the journal only names are shown: of jobs, states and phases.
    """
    journal = Journal.opened(tmp_path / "journal.db", A_KEY)
    entry = journal.claiming(0, Offer(job="01JOB", run="01RUN"), "identity")
    passed = (Variable(name="OWNERS", value="hunter2-hunter2", secret=True),)
    entry.claimed(Held(claim=a_claim(a_job()), passed_through=passed))
    entry.entered(RunState.PLANNING)
    entry.sending("plan")
    entry.ended("plan", 3)
    entry.decided(Outcome(verdict=Verdict.FAILED, reason="hunter2", code="x"))
    (job,) = json.loads(made(journal=journal)["journal.json"])
    journal.close()

    assert ("01JOB", "01RUN", 0) == (job["job"], job["run"], job["slot"])
    assert [
        *("claimed", "entered PLANNING", "sending plan", "ended plan 3", "decided"),
    ] == job["steps"]


def test_versions():
    """
    The bundle says what runs, and of what it is made.
    """
    versions = json.loads(made()["versions.json"])

    assert {"spacelift-launcher", "python", "platform"} <= set(versions)
    assert "library docker" in versions


def test_recent_lines_are_bounded():
    """
    The last lines of the log are kept, and never more than fit into their room.
    """
    recent = telemetry._Recent()
    for number in range(5000):
        recent.append(f"line {number} {'x' * 90}\n")
    recent.append("y" * 100_000)

    lines = recent.lines()
    assert '{"msg":"a long line, left out"}\n' == lines[-1]
    assert lines[-2].startswith("line 4999 ")
    assert 100_000 < sum(map(len, lines)) <= 1 << 17
