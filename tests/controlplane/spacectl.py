"""The real spacectl's operations, sent as it sends them."""

import json

from controlplane.shapes import check_shape
from controlplane.site import DATA


RECORDED = json.loads((DATA / "spacectl_operations.json").read_text())
OPERATIONS = {each["id"]: each for each in RECORDED["operations"]}


class Spacectl:
    """Sends recorded documents and checks the answers as the client would."""

    def __init__(self, api):
        self.api = api

    def __call__(self, name, headers=None, **variables):
        operation = OPERATIONS[name]
        assert set(variables) == set(operation["exampleVariables"] or {})
        data = self.api(
            operation["document"],
            variables,
            {**operation["extraHeaders"], **(headers or {})},
        )
        check_shape(operation["document"], data)
        return data


def search(**changes):
    return {
        "first": 50,
        "after": None,
        "fullTextSearch": None,
        "predicates": None,
        "orderBy": None,
        **changes,
    }


def predicate(field, *values, exclude=False):
    constraint = {
        "booleanEquals": None,
        "enumEquals": None,
        "stringMatches": list(values),
    }
    return {"field": field, "constraint": constraint, "exclude": exclude}
