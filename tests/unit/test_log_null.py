"""The log that keeps nothing."""

import pytest

from fastmq.storage.log import Appended, AppendOutcome, Log, NullLog, RecordLevel


@pytest.fixture
def log() -> NullLog:
    log = NullLog()
    log.open(epoch=1)
    return log


def test_null_log_is_a_log_that_wants_no_records(log):
    assert isinstance(log, Log)
    assert log.record_level is RecordLevel.NONE


def test_append_is_durable_at_once(log):
    assert log.append([(0, b"one"), (5, b"two")]) == Appended(AppendOutcome.DURABLE, 2)
    assert log.append([(0, b"three")]) == Appended(AppendOutcome.DURABLE, 3)
    assert log.completed() == Appended(AppendOutcome.DURABLE, 3)
    assert log.fileno() == -1


def test_an_empty_append_moves_no_position(log):
    assert log.append([]) == Appended(AppendOutcome.DURABLE, 0)


def test_nothing_is_read_again(log):
    heard = []
    stop = log.tail(1, heard.append)
    log.append([(0, b"one")])
    assert log.checkpoint(2, [(0, b"state")]).outcome is AppendOutcome.DURABLE
    log.trim(2)
    assert list(log.read(1)) == []
    stop()
    log.close()
    assert heard == []
    assert log.open(epoch=2) == 1


def test_the_interface_alone_is_no_log():
    with pytest.raises(TypeError):
        Log()
