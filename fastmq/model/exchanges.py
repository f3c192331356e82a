"""The exchange types: which destinations take a message with this key.

Owns: the bindings of one exchange. Rules: all types (headers is still to come) have the same methods in the same order;
a destination is the number of a queue or an exchange; the same (key, destination) is added at most once, and only what
was added is removed (the topology sees to both); adding and removing cost no more as the table grows.
Process: front-end, and worker 0.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

from fastmq._core import TopicTrie

_Key = TypeVar("_Key")


class Relation(Generic[_Key]):
    """From a key to the numbers added under it. One number, the common case, costs no container of its own."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[_Key, int | dict[int, None]] = {}

    def add(self, key: _Key, number: int) -> None:
        row = self._rows.get(key)
        if row is None:
            self._rows[key] = number
        elif isinstance(row, dict):
            row[number] = None
        elif row != number:
            self._rows[key] = {row: None, number: None}

    def remove(self, key: _Key, number: int) -> None:
        row = self._rows[key]
        if isinstance(row, dict):
            del row[number]
            if row:
                return
        del self._rows[key]

    def get(self, key: _Key) -> Collection[int]:
        """The numbers under `key`, in the order they were added. Void after the next change: copy to keep."""
        row = self._rows.get(key)
        if row is None:
            return ()
        return row.keys() if isinstance(row, dict) else (row,)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)


class Table(ABC):
    """The bindings of one exchange, as its type reads them."""

    __slots__ = ()

    @abstractmethod
    def add(self, key: str, destination: int) -> None:
        """Bind `destination` with `key`."""

    @abstractmethod
    def remove(self, key: str, destination: int) -> None:
        """Take a binding away again."""

    @abstractmethod
    def match(self, key: str, headers: Mapping[str, Any] | None) -> Collection[int]:
        """The destinations of a message. Void after the next change; one may stand in it twice."""


class DirectTable(Table):
    """A message goes where its key was bound, letter by letter."""

    __slots__ = ("_destinations",)

    def __init__(self) -> None:
        self._destinations: Relation[str] = Relation()

    def add(self, key: str, destination: int) -> None:
        self._destinations.add(key, destination)

    def remove(self, key: str, destination: int) -> None:
        self._destinations.remove(key, destination)

    def match(self, key: str, headers: Mapping[str, Any] | None) -> Collection[int]:
        return self._destinations.get(key)


class FanoutTable(Table):
    """A message goes to all that is bound, whatever the key."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}       # destination -> bindings to it, with whatever keys

    def add(self, key: str, destination: int) -> None:
        self._counts[destination] = self._counts.get(destination, 0) + 1

    def remove(self, key: str, destination: int) -> None:
        left = self._counts[destination] - 1
        if left:
            self._counts[destination] = left
        else:
            del self._counts[destination]

    def match(self, key: str, headers: Mapping[str, Any] | None) -> Collection[int]:
        return self._counts.keys()


class TopicTable(Table):
    """A message goes where its key fits the pattern: words between dots, `*` is one word, `#` none or more."""

    __slots__ = ("_trie",)

    def __init__(self) -> None:
        self._trie = TopicTrie()

    def add(self, key: str, destination: int) -> None:
        self._trie.add(key.encode(), destination)

    def remove(self, key: str, destination: int) -> None:
        self._trie.remove(key.encode(), destination)

    def match(self, key: str, headers: Mapping[str, Any] | None) -> Collection[int]:
        matched: list[int] = self._trie.match(key.encode())
        return matched


TABLES: dict[str, type[Table]] = {"direct": DirectTable, "fanout": FanoutTable, "topic": TopicTable}
