"""Every setting of the broker, once: flags, environment (FASTMQ_<NAME>), configuration file and docs/config.md derive from this table."""
from __future__ import annotations

import os
from typing import Any, NamedTuple

from fastmq.errors import BadArgument

__version__ = "0.1.0"       # of fastmq, and in pyproject.toml
UNIX_EVENTS = ".events"     # behind the path of the socket for commands
UNIX_PATH_SIZE_MAX = 107    # bytes; Linux has room for 108 with the last NUL
PREFIX = "FASTMQ_"          # of environment variables
NEARLY = 0.85               # of difflib: WORKER is nearly WORKERS, SERVICE_HOST is not HOST


class Setting(NamedTuple):
    """What is known about one setting."""

    default: Any
    help: str
    low: float | None
    high: float | None
    flag: bool          # of `fastmq serve`


def _setting(default: Any, help: str, *, low: float | None = None, high: float | None = None, flag: bool = False) -> Any:
    return Setting(default, help, low, high, flag)


class Config:
    """The settings of one broker, which do not change. Times are seconds, sizes bytes. (Not a dataclass: that import makes a start longer.)"""

    host: str = _setting("127.0.0.1", "address to listen on, or a name of one; * for all", flag=True)
    port: int = _setting(7400, "port for commands; 0 takes a free one", low=0, high=65535, flag=True)
    events_port: int = _setting(
        -1, "port for live events; -1: the port for commands + 1, or a free one where that is free", low=-1, high=65535, flag=True
    )
    unix: str = _setting(
        "", "path of a unix socket for commands, with one for live events beside it (PATH.events); @NAME: abstract ones, without a file; "
        "empty: none", flag=True
    )
    unix_mode: str = _setting("0600", "permissions of the unix sockets, octal as for chmod: who may write may connect", flag=True)
    workers: int = _setting(0, "worker processes; 0: the number of cores less one, at least 1", low=0, high=32, flag=True)
    shards: int = _setting(64, "shards, fixed when a data directory is made", low=1, high=1024)
    checkpoint_tail_size: int = _setting(
        2**28, "bytes of journal behind a worker's last checkpoint after which it makes the next one", low=2**16, high=2**40
    )
    memory_mark: int = _setting(
        2**30, "bytes of messages in a worker's memory above which those of durable queues are written out, with a data directory", low=2**20,
        high=2**44
    )
    data_dir: str = _setting(
        "", "directory for what must survive a restart; empty: `fastmq serve` takes the default one, an embedded broker keeps nothing",
        flag=True,
    )
    publish_window_messages: int = _setting(16384, "publishes of one session that may be without an outcome", low=1, high=65535)
    publish_window_bytes: int = _setting(16 * 2**20, "bytes of publishes of one session that may be without an outcome", low=1, high=2**32)
    publish_window_narrow_bytes: int = _setting(
        2 * 2**20, "bytes, or two messages where that is more, that a publisher of messages over 128 KiB on this machine may have on their way "
        "while small requests of others come; as many as publish_window_bytes: it is never held back", low=1, high=2**32)
    consume_window_bytes: int = _setting(64 * 2**20, "bytes that may be outstanding at one consumer", low=1, high=2**40)
    resume_s: float = _setting(30.0, "how long the exclusive queues of a vanished client are kept", low=0, high=86400)
    publisher_keep_s: float = _setting(3600.0, "how long a shard remembers what a publisher sent last", low=1, high=10**7)
    publishers_max: int = _setting(10000, "publishers that one shard remembers", low=1, high=10**7)
    sessions_max: int = _setting(20000, "sessions of one front-end", low=1, high=10**6)
    connection_sessions_max: int = _setting(16, "sessions of one connection, those it has left behind included", low=1, high=10**6)
    queues_max: int = _setting(1_000_000, "queues", low=1, high=10**8)
    exchanges_max: int = _setting(100_000, "exchanges", low=1, high=10**8)
    bindings_max: int = _setting(2_000_000, "bindings", low=1, high=10**8)
    patterns_max: int = _setting(10_000, "distinct patterns of live subscriptions", low=1, high=10**6)
    descriptors: int = _setting(65536, "descriptors the front-end asks the system for", low=256, high=10**7)
    ring_size: int = _setting(2**20, "bytes of each ring between a front-end and a worker; a power of two", low=4096, high=2**30)
    arena_size: int = _setting(
        2**34, "bytes of shared memory that one worker may use for bodies over 16 KiB; without room they are copied", low=2**22, high=2**40
    )
    frontend_memory_max: int = _setting(8 * 2**30, "bytes of memory a front-end may use before it is restarted", low=2**26, high=2**44)
    events_high_water_mark: int = _setting(1000, "event frames that may wait for one subscriber before it loses events", low=1, high=10**6)

    def __init__(self, **values: Any) -> None:
        """The settings given, of the types of their defaults; the others are the defaults. `from_map` is for values of strangers."""
        for name in values:
            if name not in SETTINGS:
                raise BadArgument(f"there is no setting {name!r}")
        vars(self).update({name: values.get(name, setting.default) for name, setting in SETTINGS.items()})
        self._check()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings do not change: {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def _check(self) -> None:
        for name, setting in SETTINGS.items():
            value, low, high = getattr(self, name), setting.low, setting.high
            if low is not None and high is not None and not low <= value <= high:
                raise BadArgument(f"setting {name}={value!r} must lie between {low} and {high}")
        if self.ring_size & (self.ring_size - 1):
            raise BadArgument(f"setting ring_size={self.ring_size} must be a power of two")
        if self.unix:
            self._check_unix()

    def _check_unix(self) -> None:
        """The path made absolute, because clients are told where the events are; and short enough for the system."""
        if "\0" in self.unix or self.unix == "@":
            raise BadArgument(f"setting unix={self.unix!r} is not a path")
        if not self.unix.startswith("@"):
            vars(self)["unix"] = os.path.abspath(self.unix)
        size, size_max = len(os.fsencode(self.unix)), UNIX_PATH_SIZE_MAX - len(UNIX_EVENTS)
        if size > size_max:
            raise BadArgument(f"setting unix={self.unix!r} has {size} bytes; the path of a socket may have {size_max}")
        if not 3 <= len(self.unix_mode) <= 4 or not set(self.unix_mode) <= set("01234567") or int(self.unix_mode, 8) > 0o777:
            raise BadArgument(f"setting unix_mode={self.unix_mode!r} must be octal, like 0600 or 0660")

    @property
    def unix_events(self) -> str:
        """The path of the unix socket for live events."""
        return self.unix + UNIX_EVENTS

    @property
    def unix_url(self) -> str | None:
        """What clients connect to over the unix socket; None: there is none."""
        from urllib.parse import quote

        return "fastmq+unix://" + quote(self.unix, safe="/@") if self.unix else None

    @property
    def worker_count(self) -> int:
        """The number of workers, with 0 resolved against this machine's cores."""
        return self.workers or max(1, min(32, len(os.sched_getaffinity(0)) - 1))

    def replace(self, **changes: Any) -> Config:
        """These settings with some changed; a value of None leaves one as it is."""
        return Config(**{**vars(self), **{name: value for name, value in changes.items() if value is not None}})

    def to_map(self) -> dict[str, Any]:
        """The settings as plain values, for another process."""
        return dict(vars(self))

    @classmethod
    def from_map(cls, values: dict[str, Any], where: str = "the settings") -> Config:
        """Settings from plain values; an unknown name or a value of another type is refused, naming it and `where` it stood."""
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if name not in SETTINGS:
                raise BadArgument(f"{where}: there is no setting {name!r}; docs/config.md lists them all")
            changes[name] = _converted(name, value, type(SETTINGS[name].default), where)
        return cls(**changes)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, environ: dict[str, str] | None = None) -> Config:
        """Defaults, over them the TOML file at `path`, over that the environment."""
        values = {} if path is None else _read(path)
        config = cls.from_map(values, where=str(path))
        environ = dict(os.environ) if environ is None else environ
        found = {name: environ[PREFIX + name.upper()] for name in SETTINGS if PREFIX + name.upper() in environ}
        return cls.from_map({**config.to_map(), **found}, where="the environment (FASTMQ_...)")


def misspelt(environ: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """(variable, the one that is probably meant) for each FASTMQ_ variable that is no setting but is called nearly as one.

    Others may have such names for reasons of their own, so nothing is refused.
    """
    names = [name.upper() for name in SETTINGS]
    found = []
    for variable in sorted(os.environ if environ is None else environ):
        if variable.startswith(PREFIX) and variable[len(PREFIX) :] not in names:
            from difflib import get_close_matches  # it makes a start longer

            found += [(variable, PREFIX + name) for name in get_close_matches(variable[len(PREFIX) :], names, 1, NEARLY)]
    return found


SETTINGS: dict[str, Setting] = {name: value for name, value in vars(Config).items() if isinstance(value, Setting)}


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file says."""
    import tomllib  # not above: a start without a file need not wait for it

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadArgument(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadArgument(f"the configuration file {path} is not TOML: {error}") from None


def _converted(name: str, value: Any, kind: type, where: str) -> Any:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    try:
        if isinstance(value, str) or (kind is float and isinstance(value, int)):
            return kind(value)
    except ValueError:
        pass
    raise BadArgument(f"{where}: setting {name}={value!r} is not {'a whole number' if kind is int else f'a {kind.__name__}'}")
