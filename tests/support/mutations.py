"""Random changes of JSON values, for tests that read files which anybody may have written."""

from hypothesis import strategies as st

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64, -(2**64), 10**400]),
    st.sampled_from([0.5, -1.5, 1e308, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", "x", "mle", "x" * 10_000, "\ud800", "a\0b", "../x", "/dev/zero"]),
)
VALUES = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=2),
    st.dictionaries(st.sampled_from(["type", "path", "x"]), LEAVES, max_size=2),
    st.sampled_from(["MLE", "Path", "Experiment", "VersesConfig"]).map(lambda name: {"type": name}),
)


def paths(value, path=()):
    """Yield the path of each value within a JSON value, its own first."""
    yield path
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from paths(value[key], (*path, key))


def changed(value, path, change):
    """Return a JSON value whose part at `path` is changed in its container by `change`."""
    if not path:
        return change({"": value}, "").get("")
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1:
        return change(copy, path[0])
    copy[path[0]] = changed(copy[path[0]], path[1:], change)
    return copy


def replaced(new):
    """Return a change that puts `new` in a value's place."""

    def change(container, key):
        container[key] = new
        return container

    return change


def removed(container, key):
    """Remove a value from its container."""
    del container[key]
    return container


@st.composite
def mutations(draw, value):
    """Draw a JSON value in which one place of `value` is replaced, removed, or has a new field."""
    path = draw(st.sampled_from(list(paths(value))))
    kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    if kind == "remove":
        return changed(value, path, removed)
    if kind == "add":
        path = (*path, draw(st.sampled_from(["x", "type", "seed"])))
        holders = [
            path[:end] for end in range(len(path)) if _at(value, path[:end]).__class__ is dict
        ]
        path = (*holders[-1], path[-1])
    return changed(value, path, replaced(draw(VALUES)))


def _at(value, path):
    for key in path:
        value = value[key]
    return value
