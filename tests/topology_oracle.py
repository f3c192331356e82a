"""What a topology should do, in the plainest way: dictionaries of names, rebuilt and searched whole every time."""

import re

from fastmq.wire.verbs import Verb

TYPES = ("direct", "fanout", "topic")


def topic_matches(pattern: str, key: str) -> bool:
    """Each word becomes a `.word`, so that `#` can be none of them."""
    words = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
    expression = "".join(words.get(word, r"\." + re.escape(word)) for word in pattern.split(".")) if pattern else ""
    return re.fullmatch(expression, "." + key if key else "", flags=re.DOTALL) is not None


class Oracle:
    """`request` answers a code's name; `route` the names of queues, or a code's name."""

    def __init__(self, queues_max: int, exchanges_max: int, bindings_max: int) -> None:
        self.limits = {"queue": queues_max, "exchange": exchanges_max, "binding": bindings_max}
        self.exchanges = {f"amq.{kind}": (kind, {"durable"}) for kind in TYPES}
        self.queues: dict[str, tuple[set[str], int]] = {}
        self.bindings: set[tuple[str, str, str, str]] = set()      # source, kind, destination, key

    def request(self, sid: int, verb: int, *fields) -> str:
        return {
            Verb.DECLARE_EXCHANGE: self.declare_exchange, Verb.DELETE_EXCHANGE: self.delete_exchange,
            Verb.DECLARE_QUEUE: self.declare_queue, Verb.DELETE_QUEUE: self.delete_queue,
            Verb.BIND: self.bind, Verb.UNBIND: self.unbind,
        }[verb](sid, *fields)  # fmt: skip

    @staticmethod
    def wanted(options):
        given = {"durable": True, **options}
        given.pop("passive", None)
        return {name for name, value in given.items() if value}

    def declare_exchange(self, sid, name, kind, options):
        if not name:
            return "access-refused"
        if options.get("passive"):
            return "ok" if name in self.exchanges else "no-exchange"
        if name in self.exchanges:
            return "ok" if self.exchanges[name] == (kind, self.wanted(options)) else "precondition-failed"
        if kind not in TYPES:
            return "unknown-argument"
        if name.startswith("amq."):
            return "access-refused"
        if len(self.exchanges) >= self.limits["exchange"]:
            return "limit"
        self.exchanges[name] = (kind, self.wanted(options))
        return "ok"

    def delete_exchange(self, sid, name, options):
        if name.startswith("amq.") or not name:
            return "access-refused"
        if name in self.exchanges:
            self.remove("exchange", name)
        return "ok"

    def declare_queue(self, sid, name, options):
        if name in self.queues and self.queues[name][1] not in (0, sid):
            return "resource-locked"
        if options.get("passive"):
            return "ok" if name in self.queues else "no-queue" if name else "bad-request"
        if name in self.queues:
            return "ok" if self.queues[name][0] == self.wanted(options) else "precondition-failed"
        if name.startswith("amq."):
            return "access-refused"
        if len(self.queues) >= self.limits["queue"]:
            return "limit"
        self.queues[name] = (self.wanted(options), sid if options.get("exclusive") else 0)
        return "ok"

    def delete_queue(self, sid, name, options):
        if not name:
            return "bad-request"
        if name in self.queues:
            if self.queues[name][1] not in (0, sid):
                return "resource-locked"
            self.remove("queue", name)
        return "ok"

    def bind(self, sid, kind, destination, source, key, options):
        problem = self.binding_problem(sid, kind, destination, source)
        if problem != "ok" or (source, kind, destination, key) in self.bindings:
            return problem
        if len(self.bindings) >= self.limits["binding"]:
            return "limit"
        self.bindings.add((source, kind, destination, key))
        return "ok"

    def unbind(self, sid, kind, destination, source, key, options):
        problem = self.binding_problem(sid, kind, destination, source)
        if problem.startswith("no-"):
            locked = kind == "queue" and self.queues.get(destination, ((), 0))[1] not in (0, sid)
            return "resource-locked" if locked else "ok"
        if problem == "ok" and (source, kind, destination, key) in self.bindings:
            self.unbind_all({(source, kind, destination, key)})
        return problem

    def binding_problem(self, sid, kind, destination, source):
        if not source or (kind == "exchange" and not destination):
            return "access-refused"
        if not destination:
            return "bad-request"
        if source not in self.exchanges:
            return "no-exchange"
        if destination not in (self.queues if kind == "queue" else self.exchanges):
            return f"no-{kind}"
        if kind == "queue" and self.queues[destination][1] not in (0, sid):
            return "resource-locked"
        return "ok"

    def remove(self, kind, name):
        del (self.queues if kind == "queue" else self.exchanges)[name]
        self.unbind_all({b for b in self.bindings if b[1:3] == (kind, name) or (kind == "exchange" and b[0] == name)})

    def unbind_all(self, gone):
        self.bindings -= gone
        for source in {binding[0] for binding in gone}:
            unbound = all(binding[0] != source for binding in self.bindings)
            if source in self.exchanges and "auto_delete" in self.exchanges[source][1] and unbound:
                self.remove("exchange", source)

    def route(self, exchange: str, key: str) -> set[str] | str:
        if not exchange:
            return {key} if key in self.queues else "no-queue"
        if exchange not in self.exchanges:
            return "no-exchange"
        if "internal" in self.exchanges[exchange][1]:
            return "access-refused"
        reached, queues, grown = {exchange}, set(), True
        while grown:
            grown = False
            for source, kind, destination, pattern in self.bindings:
                if source in reached and self.matches(source, pattern, key):
                    found = queues if kind == "queue" else reached
                    grown = grown or destination not in found
                    found.add(destination)
        return queues

    def matches(self, exchange, pattern, key):
        kind = self.exchanges[exchange][0]
        return kind == "fanout" or (pattern == key if kind == "direct" else topic_matches(pattern, key))
