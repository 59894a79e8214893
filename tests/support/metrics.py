"""Which metrics there are: as docs/health.md has them, and as a launcher has them."""

import re

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families


PAGE = Path(__file__).parents[2] / "docs" / "health.md"


def documented():
    """Names in the table of docs/health.md, with their labels."""
    rows = re.findall(r"^\| (`spacelift_launcher_.*?) \|", PAGE.read_text(), re.M)
    found = {}
    for name, labels in re.findall(r"`([a-z_]+)(?:\{([a-z_,]+)\})?`", " ".join(rows)):
        found[name] = set(labels.split(",")) if labels else set()
    return found


def published(text):
    """What a launcher answers at /metrics, in the same form."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("spacelift_launcher_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = labels - {"le"}
    return found
