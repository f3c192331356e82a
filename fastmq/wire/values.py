"""msgpack values from a stranger, read strictly: what is not on the hot path, by way of the msgpack package.

Owns: nothing. Rules: a size, count or depth that is not allowed is refused before anything of that size is made; ext types, duplicate keys,
keys that are not str, text that is not UTF-8 and bytes behind the value are refused; one call a frame, no decoder outlives an error (see
GHSA-6v7p-g79w-8964). Runs in front-ends and clients; between our own processes plain msgpack does.
"""
from __future__ import annotations

from typing import Any, NoReturn

import msgpack

from fastmq.errors import Refused
from fastmq.wire.limits import Limit
from fastmq.wire.records import value_size

ARRAY_SIZE_MAX = 2 * Limit.OPTIONS_MAX      # elements of an array, and of a map, in a request that is not on the hot path
TEXT_SIZE_MAX = 4096                        # bytes of a str or bin in one


def decode(
    data: bytes, *, array_max: int = ARRAY_SIZE_MAX, map_max: int = ARRAY_SIZE_MAX, text_max: int = TEXT_SIZE_MAX, what: str = "the header"
) -> Any:
    """The one value in `data`, with str keys in maps. Raises Refused `bad-request`, saying what is wrong with `what`."""
    if value_size(data) != len(data):           # also bounds the nesting, and every size by the bytes that are there
        raise Refused(f"{what} is not one msgpack value without ext types, nested at most 16 deep, with nothing behind it", "bad-request")
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=True, object_pairs_hook=_map_of, ext_hook=_no_ext, max_array_len=array_max, max_map_len=map_max,
            max_str_len=text_max, max_bin_len=text_max, max_ext_len=0,
        )  # fmt: skip
    except Refused as error:
        raise Refused(f"{what} {error}", "bad-request") from None
    except UnicodeDecodeError:
        raise Refused(f"{what} holds a str that is not UTF-8", "bad-request") from None
    except ValueError as error:                 # what the msgpack package says names the limit that was passed
        raise Refused(f"{what} is not acceptable msgpack: {error}", "bad-request") from None


def _map_of(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("holds a map with the same key twice", "bad-request")
    if any(type(key) is not str for key in found):
        raise Refused("holds a map with a key that is not a str", "bad-request")
    return found


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise Refused("holds an ext type", "bad-request")
