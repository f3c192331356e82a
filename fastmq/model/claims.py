"""Who holds what must go when nobody does: sessions their exclusive queues, consumers their auto-delete queues.

Owns: for each key (a session, a queue) the front-ends through which it is held, and the deadline of what nobody holds.
Rules: a key is held, or waits for `resume_ns`, or is not known; deadlines stand in the order they were given, so that
`due` looks only at what is due; claims are not records, for they say who is there now, and front-ends repeat them after
a death. Process: worker 0.
"""
from __future__ import annotations


class Claims:
    """Keys, each held through some front-ends, or waiting for its deadline."""

    def __init__(self, resume_ns: int) -> None:
        self._resume_ns = resume_ns
        self._holders: dict[int, set[int]] = {}
        self._deadlines: dict[int, int] = {}        # key that nobody holds -> when it is due; ascending
        self._undated: dict[int, None] = {}         # keys that nobody holds, whose time begins with the next `due`

    def __contains__(self, key: int) -> bool:
        return key in self._holders or key in self._deadlines or key in self._undated

    def claim(self, key: int, frontend: int, *, sole: bool = False) -> None:
        """`key` is held through `frontend`; with `sole` through no other any more."""
        self._deadlines.pop(key, None)
        self._undated.pop(key, None)
        if sole or key not in self._holders:
            self._holders[key] = {frontend}
        else:
            self._holders[key].add(frontend)

    def release(self, key: int, now_ns: int, frontend: int | None = None) -> None:
        """`key` is not held through `frontend` (None: through any) any more. Nothing happens if it was not."""
        if self._drop(key, frontend):
            self._deadlines[key] = now_ns + self._resume_ns

    def frontend_gone(self, frontend: int) -> None:
        """All that was held through `frontend` is not any more; its time begins with the next `due`."""
        for key in [key for key, holders in self._holders.items() if frontend in holders]:
            if self._drop(key, frontend):
                self._undated[key] = None

    def expect(self, key: int) -> None:
        """`key` is to be held: unless it is, or waits, its time begins with the next `due`."""
        if key not in self:
            self._undated[key] = None

    def forget(self, key: int) -> None:
        """`key` is gone."""
        self._holders.pop(key, None)
        self._deadlines.pop(key, None)
        self._undated.pop(key, None)

    def forget_unless(self, wanted: set[int]) -> None:
        """All keys but the `wanted` are gone."""
        for key in [*self._holders, *self._deadlines, *self._undated]:
            if key not in wanted:
                self.forget(key)

    def due(self, now_ns: int) -> list[int]:
        """The keys that nobody has held for `resume_ns`, which are forgotten."""
        for key in self._undated:
            self._deadlines[key] = now_ns + self._resume_ns
        self._undated.clear()
        found = []
        for key, deadline in self._deadlines.items():
            if deadline > now_ns:
                break
            found.append(key)
        for key in found:
            del self._deadlines[key]
        return found

    def _drop(self, key: int, frontend: int | None) -> bool:
        """Whether `key` was held and is not any more."""
        holders = self._holders.get(key)
        if holders is None or (frontend is not None and frontend not in holders):
            return False
        if frontend is not None:
            holders.discard(frontend)
            if holders:
                return False
        del self._holders[key]
        return True
