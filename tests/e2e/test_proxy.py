"""A launcher that reaches its control plane by a proxy only."""

import base64

import pytest

from support.connect_proxy import proxying


pytestmark = pytest.mark.services

PASSWORD = "proxy-password-of-this-test"


def test_a_run_by_way_of_a_proxy(open_site):
    """
    A whole run goes through the proxy, which sees nothing of it.

    The proxy's password is in no log, and is masked where a run prints it.
    """
    show = ["echo proxy=$HTTPS_PROXY"]
    stacks = [{"slug": "far", "autodeploy": True, "hooks": {"before_init": show}}]
    site = open_site(stacks)
    port = int(site.addresses.workers.rpartition(":")[2])
    # Nobody but the proxy knows where that is.
    site.relay = f"https://plane.example:{port}"
    places = {f"plane.example:{port}": port}
    with proxying(places, credentials=f"jane:{PASSWORD}") as proxy:
        launcher = site.launcher(
            HTTPS_PROXY=proxy.url, SPACELIFT_WHITELIST_ENVS="HTTPS_PROXY"
        )
        run = site.api.trigger("far")
        texts = site.follow("far", run)
        launcher.stop()
        site.launchers.clear()

        assert "FINISHED" in texts
        printed = "".join(texts.values())
        assert "proxy=http://" in printed
        encoded = base64.b64encode(f"jane:{PASSWORD}".encode()).decode()
        for said in (printed, launcher.log.read_text()):
            assert PASSWORD not in said
            assert encoded not in said
        assert {("CONNECT", f"plane.example:{port}")} == set(proxy.asked)
        assert b"worker/v1" not in proxy.seen
