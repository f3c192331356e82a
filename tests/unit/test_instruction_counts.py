"""Instructions a message costs on its path, against tests/counting/baseline.json; `make counts` writes that anew."""

import json
import os

import pytest
from counting import instructions
from counting.instructions import TOTAL, function_name, raised, read_calls

BEFORE = {"450 worker publish": {TOTAL: 400.0, "model.publish.publish_run": 200.0, "wire.buffer.buffer_add": 20.0}}


@pytest.mark.needs("valgrind", package="valgrind")
@pytest.mark.skipif(os.environ.get("FASTMQ_ASAN") == "1", reason="a sanitized build runs other instructions")
def test_no_step_of_the_path_costs_five_percent_more_instructions():
    baseline = json.loads(instructions.BASELINE.read_text())
    here = instructions.setting()
    if here != baseline["setting"]:
        pytest.skip("; ".join(f"{what} is {here[what]}, of the baseline {of}" for what, of in baseline["setting"].items() if here[what] != of))
    wrong = raised(baseline["counts"], instructions.count_all())
    assert not wrong, "\n  ".join(["find out why, or write a new baseline (make counts) and say why in the commit:", *wrong])


def now(**changed):
    return {"450 worker publish": {**BEFORE["450 worker publish"], **{name.replace("__", "."): n for name, n in changed.items()}}}


@pytest.mark.parametrize(("changed", "found"), [
    ({}, []),
    ({"model__publish__publish_run": 209.9, "all": 380.0}, []),
    ({"model__publish__publish_run": 211.0}, ["model.publish.publish_run 200 -> 211 instructions a message (+5.5 %)"]),
    ({"all": 421.0}, ["all 400 -> 421 instructions a message (+5.2 %)"]),
    ({"wire__buffer__buffer_add": 22.9}, []),
    ({"wire__buffer__buffer_add": 23.1}, ["wire.buffer.buffer_add 20 -> 23 instructions a message (+15.5 %)"]),
    ({"model__publish__something_new": 90.0}, []),
])
def test_five_percent_more_is_reported_and_a_few_instructions_are_not(changed, found):
    assert raised(BEFORE, now(**changed)) == [f"450 worker publish: {line}" for line in found]


def test_function_of_the_baseline_that_is_not_called_any_more_is_reported():
    without = now()
    del without["450 worker publish"]["model.publish.publish_run"]
    assert raised(BEFORE, without) == ["450 worker publish: model.publish.publish_run is not called, or hardly"]
    assert raised(BEFORE, {}) != []


def test_callgrind_file_is_read():
    lines = """
fn=(1) __pyx_pw_6fastmq_1
0 7
cfn=(2) __pyx_f_6fastmq_5model_7publish_publish_run.constprop.0
calls=2 0
0 130

fn=(2)
0 100
cfn=(3) memcpy
calls=4 0
+1 30
""".splitlines()
    assert list(read_calls(lines)) == [
        ("__pyx_pw_6fastmq_1", "__pyx_f_6fastmq_5model_7publish_publish_run.constprop.0", 130),
        ("__pyx_f_6fastmq_5model_7publish_publish_run.constprop.0", "memcpy", 30),
    ]


@pytest.mark.parametrize(("symbol", "name"), [
    ("__pyx_f_6fastmq_5model_7publish_publish_run", "model.publish.publish_run"),
    ("__pyx_f_6fastmq_5_core_trie_add.part.0", "_core.trie_add"),
    ("__pyx_f_6fastmq_6client_4core_10ClientCore_on_confirm'2", "client.core.ClientCore.on_confirm"),
    ("__pyx_pw_6fastmq_5_core_1a", None),
    ("memcpy", None),
])
def test_functions_are_named_as_in_the_source(symbol, name):
    assert function_name(symbol) == name
