"""Does an answer have exactly the keys that its document selects?"""

from graphql import FieldNode, InlineFragmentNode, parse


def check_shape(document, data):
    """spacectl dies of a key it did not ask for, and of one that is missing."""
    (operation,) = parse(document).definitions
    _check(operation.selection_set, data, "data")


def _check(selections, data, path):
    if selections is None or data is None:
        return
    if isinstance(data, list):
        for index, item in enumerate(data):
            _check(selections, item, f"{path}[{index}]")
        return
    wanted = dict(_fields(selections, data.get("__typename")))
    assert set(data) == set(wanted), path
    for key, inner in wanted.items():
        _check(inner, data[key], f"{path}.{key}")


def _fields(selections, kind):
    for node in selections.selections:
        if isinstance(node, FieldNode):
            key = node.alias.value if node.alias else node.name.value
            yield key, node.selection_set
        else:
            assert isinstance(node, InlineFragmentNode)
            if node.type_condition.name.value == kind:
                yield from _fields(node.selection_set, kind)
