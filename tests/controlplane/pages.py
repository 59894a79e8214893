"""The pages, for who has no browser: cookies, forms and events."""

import re
import urllib.parse

from controlplane.site import ENVIRON


class Browser:
    """Keeps a cookie, and reads forms; no more of a browser than that."""

    def __init__(self, site):
        self.site, self.cookie = site, ""

    def get(self, path, **headers):
        given = {"Cookie": self.cookie, **headers} if self.cookie else headers
        return self.site.http.request(
            "GET", self.site.base + path, headers=given, redirect=False
        )

    def post(self, path, fields, **headers):
        kind = "application/x-www-form-urlencoded"
        given = {"Content-Type": kind, **headers}
        if self.cookie:
            given["Cookie"] = self.cookie
        return self.site.http.request(
            "POST",
            self.site.base + path,
            body=urllib.parse.urlencode(fields),
            headers=given,
            redirect=False,
        )

    def sign_in(self, key="ci", secret=ENVIRON["CI_SECRET"], **more):
        answer = self.post("/sign-in", {"key": key, "secret": secret, **more})
        self.cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        return answer

    def word(self, path):
        return re.search(r'name="word" value="(\w+)"', self.text(path))[1]

    def text(self, path):
        answer = self.get(path)
        assert answer.status == 200, answer.data
        return answer.data.decode()

    def act(self, run, action, **fields):
        path = f"/stack/{self.site.slug}/run/{run}"
        given = {"word": self.word(path), "action": action, **fields}
        return self.post(f"{path}/act", given)

    def events(self, run, seen=None):
        """Events as they come; ends with the stream."""
        path = f"/stack/{self.site.slug}/run/{run}/events"
        headers = {"Cookie": self.cookie}
        if seen:
            headers["Last-Event-ID"] = seen
        answer = self.site.http.request(
            "GET", self.site.base + path, headers=headers, preload_content=False
        )
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        event = {"data": []}
        try:
            for line in _lines(answer):
                name, _, value = line.partition(": ")
                if name == "data":
                    event["data"].append(value)
                elif line:
                    event[name] = value
                elif "event" in event:
                    yield event
                    event = {"data": []}
                else:
                    event = {"data": []}
        finally:
            answer.close()


def _lines(answer):
    rest = b""
    while piece := answer.read1():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode()


def rows(events):
    """Numbers and texts of the rows in *events*."""
    return [
        (int(found[1]), found[2])
        for event in events
        if event["event"] == "lines"
        for row in event["data"]
        if (found := re.fullmatch(r'<div id="L(\d+)"><a [^>]*>\d+</a>(.*)</div>', row))
    ]


def path_of(site, run):
    return f"/stack/{site.slug}/run/{run}"
