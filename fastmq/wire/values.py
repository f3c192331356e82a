"""msgpack values from a stranger, read strictly: what is not on the hot path, by way of the msgpack package.

Owns: nothing. Rules: a size, count or depth that is not allowed is refused before anything of that size is made; ext types, duplicate keys,
keys that are not str, text that is not UTF-8 and bytes behind the value are refused; one call a frame, no decoder outlives an error (see
GHSA-6v7p-g79w-8964). Runs in front-ends and clients; between our own processes plain msgpack does.
"""
from __future__ import annotations

from typing import Any

import msgpack

from fastmq.errors import Refused
from fastmq.wire.limits import Limit
from fastmq.wire.records import value_size


def decode(data: bytes, what: str = "the header") -> Any:
    """The one value in `data`, with str keys in maps. Raises Refused `bad-request` or `too-large`, saying what is wrong with `what`."""
    if value_size(data) != len(data):           # also bounds the nesting, and every size by the bytes that are there
        raise Refused(f"{what} is not one msgpack value without ext types, nested at most 16 deep, with nothing behind it", "bad-request")
    elements_max, text_max = int(Limit.ELEMENTS_MAX), int(Limit.TEXT_SIZE_MAX)
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, object_pairs_hook=_map_of, max_array_len=elements_max, max_map_len=elements_max,
            max_str_len=text_max, max_bin_len=text_max, max_ext_len=0,
        )  # fmt: skip
    except Refused as error:
        raise Refused(f"{what} {error}", "bad-request") from None
    except UnicodeDecodeError:
        raise Refused(f"{what} holds a str that is not UTF-8", "bad-request") from None
    except ValueError:                          # of all that the msgpack package refuses only the sizes were not looked at before
        allowed = f"at most {text_max} bytes in a str or bin and {elements_max} elements in an array or map are allowed"
        raise Refused(f"{what} holds too much: {allowed}", "too-large") from None


def _map_of(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    if any(type(key) is not str for key, _ in pairs):
        raise Refused("holds a map with a key that is not a str", "bad-request")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("holds a map with the same key twice", "bad-request")
    return found
