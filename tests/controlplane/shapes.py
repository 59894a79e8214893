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
    wanted = _wanted(selections, data)
    assert set(data) == set(wanted), path
    for key, inner in wanted.items():
        _check(inner, data[key], f"{path}.{key}")


def _wanted(selections, data):
    """What is selected of a thing whose type may have to be guessed by its keys."""
    if "__typename" in data:
        return dict(_fields(selections, data["__typename"]))
    kinds = [
        node.type_condition.name.value
        for node in selections.selections
        if isinstance(node, InlineFragmentNode)
    ]
    guesses = [dict(_fields(selections, kind)) for kind in kinds or [None]]
    return next((each for each in guesses if set(each) == set(data)), guesses[0])


def _fields(selections, kind):
    for node in selections.selections:
        if isinstance(node, FieldNode):
            key = node.alias.value if node.alias else node.name.value
            yield key, node.selection_set
        else:
            assert isinstance(node, InlineFragmentNode)
            if node.type_condition.name.value == kind:
                yield from _fields(node.selection_set, kind)
