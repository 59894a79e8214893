"""Code uploaded from people's machines: addresses, archives, and the run's share."""

import gzip
import hashlib

import pytest

from controlplane.site import Refused, running, configuration, stack
from launcher.controlplane.services import Limits


ARCHIVE = gzip.compress(b"a tar, as far as anybody here knows")


@pytest.fixture
def previewing(site, repository):
    """A site whose stack allows local previews."""
    site.configure(repository, local_preview=True)
    return site


def put(site, url, body, **headers):
    return site.http.request("PUT", url, body=body, headers=headers)


def opened(spacectl, slug):
    return spacectl("M.uploadLocalWorkspaceHeaders", stack=slug)["uploadLocalWorkspace"]


def propose(spacectl, slug, workspace, **overrides):
    given = [{"key": key, "value": value} for key, value in overrides.items()]
    return spacectl(
        "M.runProposeLocalWorkspace",
        stack=slug,
        workspace=workspace,
        environmentVarsOverrides=given,
    )["runProposeLocalWorkspace"]["id"]


def test_a_local_preview_from_the_command_line(previewing, api, spacectl):
    """[capability 78] [capability 233] Upload, propose, and the worker gets the bytes."""
    site, worker = previewing, previewing.worker()
    assert spacectl("Q.stackFull", id=site.slug)["stack"]["localPreviewEnabled"]
    slot = spacectl("M.uploadLocalWorkspace", stack=site.slug)["uploadLocalWorkspace"]
    assert not set("./") & set(slot["id"])
    assert slot["uploadUrl"].startswith(f"{site.base}/uploads/{slot['id']}?token=")
    with pytest.raises(Refused, match="nothing was uploaded"):
        propose(spacectl, site.slug, slot["id"])
    assert put(site, slot["uploadUrl"], ARCHIVE).status == 201
    assert put(site, slot["uploadUrl"], ARCHIVE).status == 409, "once is enough"
    run = propose(
        spacectl, site.slug, slot["id"], TF_foo="bar", TF_CLI_ARGS_plan="-target=a"
    )
    with pytest.raises(Refused, match="used already"):
        propose(spacectl, site.slug, slot["id"])
    held = worker.take()
    assert held.run == run
    assert held.job["run"]["based_on_local_workspace"]
    assert held.job["stack"]["local_preview_enabled"]
    given = {each["name"]: each["value"] for each in held.job["environment"]}
    assert given == {"TF_foo": "bar", "TF_CLI_ARGS_plan": "-target=a"}
    response = worker.raw("GET", f"{held.path}/source", token=held.token)
    assert response.data == ARCHIVE
    assert (
        response.headers["Spacelift-Content-Sha256"]
        == hashlib.sha256(ARCHIVE).hexdigest()
    )
    held.settle("failed")
    again = spacectl("M.runRetry", stack=site.slug, run=run)["runRetry"]["id"]
    retried = worker.take()
    assert retried.run == again
    assert retried.job["environment"] == held.job["environment"]
    assert (
        worker.raw("GET", f"{retried.path}/source", token=retried.token).data == ARCHIVE
    )


def test_previews_are_the_stacks_to_allow(site, spacectl):
    """Where nobody has, no address is made."""
    with pytest.raises(Refused, match="does not allow local previews"):
        opened(spacectl, site.slug)
    with pytest.raises(Refused, match="not found"):
        opened(spacectl, "nope")


def test_an_address_is_good_for_one_archive(previewing, spacectl, monkeypatch):
    """Of a known kind, with the right token, and for a quarter of an hour."""
    site, slot = previewing, opened(spacectl, previewing.slug)
    assert slot["uploadHeaders"] == {"entries": []}
    url = slot["uploadUrl"]
    assert put(site, url[:-1], ARCHIVE).status == 403
    assert put(site, url.partition("?")[0], ARCHIVE).status == 403
    assert put(site, url.replace(slot["id"], "01NOPE"), ARCHIVE).status == 403
    assert put(site, url, b"#!/bin/sh\n").status == 400
    assert put(site, url, b"").status == 400
    folder = site.folder / "control-plane.db.data" / "uploads"
    assert not any(folder.glob(f"{slot['id']}*")), "nothing is left of those"
    monkeypatch.setattr("launcher.controlplane.local_workspaces.OPEN_SECONDS", -1)
    late = opened(spacectl, site.slug)["uploadUrl"]
    assert put(site, late, ARCHIVE).status == 403
    assert put(site, url, ARCHIVE).status == 201


def test_an_upload_is_its_makers_and_its_stacks(previewing, api, spacectl):
    """Nobody else's run takes its code from it."""
    from launcher.controlplane.actors import Actor

    site, slot = previewing, opened(spacectl, previewing.slug)
    put(site, slot["uploadUrl"], ARCHIVE)
    use = site.plane.local_workspaces.use
    with pytest.raises(Exception, match="was not found"):
        use(site.slug, slot["id"], Actor.of_api_key("other"), {})
    with pytest.raises(Exception, match="was not found"):
        use("nope", slot["id"], Actor.of_api_key("ci"), {})
    with pytest.raises(Refused, match="was not found"):
        propose(spacectl, site.slug, "01NOPE")
    for wrong in ({"a b": "x"}, {"A": "nul\0"}):
        with pytest.raises(Refused, match="variable|NUL"):
            propose(spacectl, site.slug, slot["id"], **wrong)
    assert propose(spacectl, site.slug, slot["id"])


def test_a_job_without_an_upload_has_no_archive(site, api, worker):
    """Its code comes from the repository, and nowhere else."""
    api.trigger(type="PROPOSED")
    held = worker.take()
    assert worker.refused("GET", f"{held.path}/source", token=held.token) == (
        409,
        "wrong_state",
    )


def test_uploads_are_bounded_and_removed(tmp_path, repository, monkeypatch):
    """In size and number; what nobody uses is gone before long."""
    from launcher.controlplane import local_workspaces as module

    given = configuration([stack(repository, local_preview=True)])
    with running(tmp_path, given, Limits(max_upload=1000)) as site:
        from controlplane.spacectl import Spacectl

        api = site.api()
        spacectl = Spacectl(api)
        slot = opened(spacectl, site.slug)
        large = ARCHIVE + bytes(1000)
        assert put(site, slot["uploadUrl"], large).status == 413
        assert (
            put(site, slot["uploadUrl"], iter([large[:500], large[500:]])).status == 413
        )
        assert put(site, slot["uploadUrl"], ARCHIVE).status == 201
        used = opened(spacectl, site.slug)
        put(site, used["uploadUrl"], ARCHIVE)
        run = propose(spacectl, site.slug, used["id"])
        monkeypatch.setattr(module, "MAX_WAITING", 1)
        with pytest.raises(Refused, match="uploads already"):
            opened(spacectl, site.slug)
        folder = tmp_path / "control-plane.db.data" / "uploads"
        names = lambda: {path.name for path in folder.iterdir()}  # noqa: E731
        site.plane.local_workspaces.remove_needless()
        assert names() == {slot["id"], used["id"]}
        monkeypatch.setattr(module, "KEPT_SECONDS", -1)
        site.plane.local_workspaces.remove_needless()
        assert names() == {used["id"]}, "a run still needs the other one"
        api.change("cancel", run)
        site.plane.local_workspaces.remove_needless()
        assert names() == set()
