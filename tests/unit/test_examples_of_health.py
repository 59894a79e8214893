"""The dashboard and the alert rules are about metrics that there are."""

import json
import re

from pathlib import Path

import pytest
import yaml

from controlplane.site import configuration, running
from support.metrics import documented, published

from launcher.health import Health


ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "examples/grafana/dashboard.json").read_text())
ALERTS = yaml.safe_load((ROOT / "examples/prometheus/alerts.yaml").read_text())
SUFFIX = re.compile(r"_(bucket|count|sum)$")
FUNCTIONS = {
    *("abs", "by", "count", "histogram_quantile", "increase", "max", "rate", "sum"),
    *("time", "topk", "and", "or", "on"),
}

RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(rule["expr"] for rule in RULES),
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
]


def metrics_of(expression):
    """Names of metrics in an expression, with the labels that are asked for."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    for name, selector in re.findall(
        r"\b(spacelift_[a-z_]+|process_[a-z_]+)(?:\{([^}]*)\})?", bare
    ):
        yield SUFFIX.sub("", name), set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))


@pytest.fixture(scope="module")
def of_the_control_plane(tmp_path_factory):
    """
    What a control plane with two pools answers at /metrics.
    """
    with running(tmp_path_factory.mktemp("site"), configuration([])) as site:
        text = site.http.request("GET", f"{site.base}/metrics").data.decode()
    return published(text, "spacelift_")


@pytest.fixture(scope="module")
def names(of_the_control_plane):
    """
    All metrics that there are, with their labels.

    The table of a launcher's own is held against a launcher elsewhere.
    """
    process = published(Health().metrics().decode(), "process_")
    return {**documented(), **process, **of_the_control_plane}


def test_pools_are_documented(of_the_control_plane):
    """
    The table of docs/control-plane.md has what the control plane counts of its pools.
    """
    prefix = "spacelift_worker_pool_"
    counted = {name for name in of_the_control_plane if name.startswith(prefix)}

    assert set(documented("control-plane.md", prefix)) == counted
    for name in counted:
        labels = {"worker_pool_id", "worker_pool_name"}
        assert labels == of_the_control_plane[name]


def test_there_is_something_to_see(of_the_control_plane):
    """
    The dashboard and the rules are about all that is published.
    """
    used = {name for each in EXPRESSIONS for name, _ in metrics_of(each)}
    unused = {*documented(), *of_the_control_plane} - used

    assert len(PANELS) > 20
    assert len(RULES) > 10
    assert set() == unused


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_exists(expression, names):
    """
    What an expression asks for is published, with those labels.
    """
    found = list(metrics_of(expression))

    assert found
    for name, labels in found:
        assert name in names
        # Added by Prometheus itself, or part of a histogram.
        assert labels <= names[name] | {"instance", "le"}
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        allowed = set().union(*(names.get(name, set()) for name, _ in found))
        assert set(re.split(r",\s*", grouped)) <= allowed | {"instance", "le"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_whole(expression):
    """
    Brackets match, and every word is a metric, a function or a label.
    """
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression.replace("$__", "5m_"))
    opened = []
    for character in bare:
        if character in "([{":
            opened.append(character)
        elif character in ")]}":
            assert opened.pop() + character in ("()", "[]", "{}")
    assert [] == opened
    called = set(re.findall(r"\b([a-z_]+)\s*\(", bare))
    assert called <= FUNCTIONS
    assert bare.count('"') == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rules_are_well_formed(rule, names):
    """
    Each alert has a name, how severe it is, and what a person should know.
    """
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert {"summary", "description"} == set(rule["annotations"])
    assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "1m"))
    texts = " ".join(rule["annotations"].values())
    for label in re.findall(r"\$labels\.(\w+)", texts):
        known = {"instance"}.union(
            *(names.get(name, set()) for name, _ in metrics_of(rule["expr"]))
        )
        assert label in known
    assert len({each["alert"] for each in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("pool", "alerts"),
    [
        # Pending runs; workers: there, busy, drained, free.
        ((0, 0, 0, 0, 0), set()),
        ((0, 2, 0, 0, 2), set()),
        (
            (1, 0, 0, 0, 0),
            {"PoolWithoutWorkers", "PoolHasNoFreeWorker", "PoolTooSmall"},
        ),
        # Three, of which two are drained and still busy.
        ((1, 3, 2, 2, 1), {"PoolDoesNotTakeRuns"}),
        ((1, 2, 0, 1, 1), {"PoolDoesNotTakeRuns"}),
        # One with a run, here or gone.
        ((1, 1, 1, 0, 0), {"PoolHasNoFreeWorker"}),
        (
            (1, 2, 2, 2, 0),
            {"PoolWithoutWorkers", "PoolHasNoFreeWorker", "PoolTooSmall"},
        ),
        ((9, 2, 2, 0, 0), {"PoolHasNoFreeWorker", "PoolTooSmall"}),
    ],
)
def test_alerts_of_pools(pool, alerts):
    """
    Which alerts a pool gives rise to, by what is counted of it.
    """
    counted = ("runs_pending", "workers", "workers_busy", "workers_drained")
    values = dict(zip((*counted, "workers_free"), pool, strict=True))
    prefix = "spacelift_worker_pool_"

    def value(match):
        return str(values[match[1]])

    raised = {
        rule["alert"]
        for rule in RULES
        if prefix in rule["expr"]
        # For a single pool, operators of PromQL mean what they mean here.
        and eval(re.sub(rf"{prefix}(\w+)", value, rule["expr"]))
    }
    assert alerts == raised


def test_the_dashboard_is_well_formed():
    """
    Panels have their own numbers and places, and ask the chosen data source.
    """
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & places
        places |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    asked = set(re.findall(r"\$([a-z]+)\b", " ".join(EXPRESSIONS)))
    assert asked <= variables
