"""YAML that says one thing: no key twice, nothing that contains itself, nothing that unfolds beyond memory."""

from collections.abc import Iterator
from typing import Any

import yaml

from lit_semantic_peft.errors import InputError

_MOST_LEVELS = 60
_MOST_VALUES = 1_000_000


class NotYaml(InputError):
    """A text that is no YAML at all."""


def parsed_yaml(text: str, place: str) -> Any:
    r"""The value of a text of YAML.

    Args:
        text: The text.
        place: What an error begins with, such as `fit.yaml`.

    Raises:
        InputError: If a key stands twice, a value contains itself, is nested too deeply or unfolds to too many values,
            or a text holds half a character.
        NotYaml: If it is no YAML, or a number in it cannot be read.

    Example:
        >>> parsed_yaml("a: 1\na: 2", "fit.yaml")
        Traceback (most recent call last):
        lit_semantic_peft.errors.InputError: fit.yaml, line 2: `a` stands in line 1 as well. Leave one of them out.
    """
    try:
        return _value(text, place)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise NotYaml(f"{place} is no YAML: {' '.join(str(error).split())}") from error


def _value(text: str, place: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Check(place).check(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise InputError(f"{place}: a value is nested deeper than {_MOST_LEVELS} levels. Write it flatter.") from error
    finally:
        loader.dispose()


class _Check:
    """Looks at each node once, before it becomes a value."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def check(self, root: yaml.Node) -> None:
        if (size := self._size(root, 0)) > _MOST_VALUES:
            raise InputError(f"{self._place}: aliases unfold to {size:,} values; at most {_MOST_VALUES:,} are read.")

    def _size(self, node: yaml.Node, level: int) -> int:
        if id(node) in self._open:
            raise self._refusal(node, "a value contains itself by an alias. Write what it is to hold.")
        if level > _MOST_LEVELS:
            raise self._refusal(node, f"a value is nested deeper than {_MOST_LEVELS} levels. Write it flatter.")
        if id(node) not in self._sizes:
            self._require_whole(node)
            self._open.add(id(node))
            self._sizes[id(node)] = 1 + sum(self._size(one, level + 1) for one in _children(node))
            self._open.remove(id(node))
        return self._sizes[id(node)]

    def _require_whole(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode) and any("\ud800" <= one <= "\udfff" for one in node.value):
            raise self._refusal(node, f"{node.value!a} holds half a character (a lone surrogate). Write it anew.")
        if not isinstance(node, yaml.MappingNode):
            return
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    where = "twice" if lines[name] == line else f"in line {lines[name]} as well"
                    raise self._refusal(key, f"`{key.value}` stands {where}. {_remedy(key)}")
                lines[name] = line

    def _refusal(self, node: yaml.Node, reason: str) -> InputError:
        return InputError(f"{self._place}, line {node.start_mark.line + 1}: {reason}")


def _remedy(key: yaml.ScalarNode) -> str:
    """What to do about a key that stands twice: mappings are merged by one key."""
    is_merge = key.tag == "tag:yaml.org,2002:merge"
    return "Write one for both: `<<: [*a, *b]`." if is_merge else "Leave one of them out."


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
