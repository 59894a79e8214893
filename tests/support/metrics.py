"""Which metrics there are: as the documentation has them, and as processes have them."""

import re

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families


DOCS = Path(__file__).parents[2] / "docs"


def documented(page="health.md", prefix="spacelift_launcher_"):
    """Names in the tables of a page, with their labels."""
    text = (DOCS / page).read_text()
    rows = re.findall(rf"^\| (`{prefix}.*?) \|", text, re.M)
    found = {}
    for name, labels in re.findall(r"`([a-z_]+)(?:\{([a-z_,]+)\})?`", " ".join(rows)):
        found[name] = set(labels.split(",")) if labels else set()
    return found


def published(text, prefix="spacelift_launcher_"):
    """What somebody answers at /metrics, in the same form."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(prefix):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = labels - {"le"}
    return found
