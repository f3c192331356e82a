"""docs/protocol.md says what the code does: its tables are those of the code, and its bytes are what it says they are."""

import ast
import re
from pathlib import Path

import msgpack
import pytest

from fastmq.errors import WIRE_ERRORS
from fastmq.server.fields import FIELDS
from fastmq.server.requests import LIMITS
from fastmq.wire.limits import Limit
from fastmq.wire.verbs import Code, SettleAction, Verb

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SECTIONS = {
    match[1]: match[2] for match in re.finditer(r"^##+ (.+)\n((?:(?!^##).*\n)*)", DOCUMENT, flags=re.MULTILINE)
}
VERB_SECTIONS = {title: text for title, text in SECTIONS.items() if re.match(r"\d+ ", title)}
NOTATION = {"nil": "None", "true": "True", "false": "False"}


def rows(text):
    """The cells of each row of the table in a section."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def values(text):
    """The values that stand in a row behind each other."""
    strings = []
    text = re.sub(r"h'([0-9a-f]*)'", r'bytes.fromhex("\1")', text)
    text = re.sub(r'"[^"]*"', lambda match: strings.append(match[0]) or f"S{len(strings) - 1}S", text)
    text = re.sub(r"\b(nil|true|false)\b", lambda match: NOTATION[match[0]], text).replace("] [", "], [")
    text = re.sub(r"S(\d+)S", lambda match: strings[int(match[1])], text)
    text = re.sub(r'bytes\.fromhex\("([0-9a-f]*)"\)', lambda match: repr(bytes.fromhex(match[1])), text)
    return list(ast.literal_eval(f"({text},)"))


def examples(text):
    """(label, value, bytes) of each example in a section."""
    found = []
    for block in re.findall(r"```frames\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith(" "):
                found[-1][2] += bytes.fromhex(line)
            else:
                label, value = line.split(None, 1)
                found.append([label, value, b""])
    return found


def headers(text):
    return [msgpack.unpackb(data) for label, _, data in examples(text) if label == "header"]


def test_every_example_is_the_bytes_of_its_value():
    found = examples(DOCUMENT)
    assert len(found) > 30
    for label, text, data in found:
        if label == "topic":
            assert bytes.fromhex(text) == b"\0".join((b"/", b"logs", b"t", b"*.error", b""))
            continue
        unpacker = msgpack.Unpacker()
        unpacker.feed(data)
        assert list(unpacker) == values(text), text
        assert b"".join(map(msgpack.packb, values(text))) == data, text


def test_every_verb_has_its_section():
    assert list(VERB_SECTIONS) == [f"{int(verb)} {verb.name}" for verb in Verb]


@pytest.mark.parametrize("verb", list(Verb), ids=lambda verb: verb.name)
def test_examples_of_a_verb_have_the_fields_of_its_table(verb):
    text = VERB_SECTIONS[f"{int(verb)} {verb.name}"]
    fields = rows(text)
    assert headers(text)
    for number, session, incarnation, *values in headers(text):
        assert number == verb
        assert len(session) == (8 if verb >= Verb.WELCOME else 16) or (verb in (Verb.HELLO, Verb.ERROR) and session == b"")
        assert isinstance(incarnation, int)
        assert len(values) == len(fields), f"{verb.name} has the fields {[field[0] for field in fields]}"
        for (name, kind, *_), value in zip(fields, values, strict=True):
            assert isinstance(value, TYPES[kind]), f"{verb.name}: {name} is {kind}, not {value!r}"


@pytest.mark.parametrize("verb", [verb for verb in FIELDS if verb != Verb.SETTLE], ids=lambda verb: verb.name)
def test_fields_of_a_request_are_those_that_the_front_end_reads(verb):
    assert [name for name, *_ in rows(VERB_SECTIONS[f"{int(verb)} {verb.name}"])] == [name for name, _ in FIELDS[verb]]


def test_limits_of_a_welcome_are_those_that_the_front_end_tells():
    assert set(headers(VERB_SECTIONS["32 WELCOME"])[0][5]) == set(LIMITS)


TYPES = {
    "uint": int, "uint or nil": (int, type(None)), "str": str, "name": str, "key": str, "bin": bytes, "map": dict,
    "any": object, "[run...]": list, "[settlement...]": list, "[[first, last]...]": list,
    "[[first, last, code, text]...]": list,
}  # fmt: skip


def test_records_in_examples_are_records():
    for label, text, _ in examples(DOCUMENT):
        for record in values(text) if label.startswith("record") else ():
            key, properties, body = record
            assert isinstance(key, str)
            assert properties is None or isinstance(properties, dict)
            assert isinstance(body, bytes)


def test_runs_in_examples_agree_with_their_records():
    header, records = examples(VERB_SECTIONS["34 DELIVER"])
    runs = values(header[1])[0][3]
    assert sum(run[4] for run in runs) == len(values(records[1]))


def test_errors_are_those_of_the_code():
    table = rows(SECTIONS["Errors"])
    assert [(code.strip("`"), text) for code, text, _ in table] == [(error.code, error.text) for error in WIRE_ERRORS]
    assert all(action for _, _, action in table)
    assert [error.code.replace("-", "_").upper() for error in WIRE_ERRORS] == [code.name for code in Code][1:]


def test_codes_that_the_text_speaks_of_exist():
    known = {error.code for error in WIRE_ERRORS}
    for title, text in SECTIONS.items():
        for code in re.findall(r"(?:refused|answered|ERROR|answer is|otherwise) `([a-z]+(?:-[a-z]+)*)`", text):
            assert code in known, f"{title}: {code}"


def test_limits_are_those_of_the_code():
    table = {name.strip("`"): int(value.replace(",", "")) for name, value, _ in rows(SECTIONS["Limits"])}
    assert table == {limit.name: int(limit) for limit in Limit}


def test_limits_of_a_welcome_are_those_of_the_code():
    limits = headers(VERB_SECTIONS["32 WELCOME"])[0][5]
    assert isinstance(limits.pop("version"), str)
    assert limits == {
        "name_size_max": Limit.NAME_SIZE_MAX,
        "properties_size_max": Limit.PROPERTIES_SIZE_MAX,
        "message_size_max": Limit.MESSAGE_SIZE_MAX,
        "batch_count_max": Limit.BATCH_COUNT_MAX,
        "consume_window_max": Limit.CONSUMER_WINDOW_MAX,
    }
    for name in limits:
        assert f"`{name}`" in VERB_SECTIONS["32 WELCOME"]


def test_actions_of_a_settle_are_those_of_the_code():
    text = VERB_SECTIONS["3 SETTLE"]
    found = {name.upper(): int(number) for number, name in re.findall(r"(\d) \*(\w+)\*", text)}
    assert found == {action.name: int(action) for action in SettleAction}


def test_links_lead_somewhere():
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in SECTIONS}
    for anchor in re.findall(r"\]\(#([^)]*)\)", DOCUMENT):
        assert anchor in anchors
