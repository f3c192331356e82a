"""The log that keeps nothing."""

import pytest

from fastmq.storage.log import Log, RecordLevel


@pytest.fixture
def log() -> Log:
    log = Log()
    assert log.open(epoch=1) == 0
    return log


def test_null_log_wants_no_records(log):
    assert log.record_level == RecordLevel.RECORDS_NONE
    assert Log(RecordLevel.RECORDS_ALL).record_level == RecordLevel.RECORDS_ALL


def test_null_log_never_has_news(log):
    assert log.fileno() == -1
    assert (log.durable, log.failed, log.full, log.error) == (0, False, False, None)


def test_nothing_is_read_again(log):
    log.trim(2)
    assert list(log.read()) == list(log.read(1)) == []
    log.close()
    log.close()
    assert log.open(epoch=2) == 0
