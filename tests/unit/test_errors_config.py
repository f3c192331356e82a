"""One source for each fact: error codes and settings agree with everything derived from them."""
import tomllib
from pathlib import Path

import pytest

import fastmq
from fastmq.config import Config, misspelt
from fastmq.errors import ERROR_OF_CODE, WIRE_ERRORS, BadArgument, NotFound, error_from_wire
from fastmq.wire.shards import shard_of
from fastmq.wire.verbs import Code


def test_error_numbers_agree_with_the_wire():
    ours = {row.number: row.code.replace("-", "_").upper() for row in WIRE_ERRORS}
    assert ours == {code.value: code.name for code in Code if code.name != "OK"}
    assert len(ERROR_OF_CODE) == len(WIRE_ERRORS)


def test_answer_of_a_broker_becomes_the_right_exception():
    error = error_from_wire("no-queue", "queue 'x' does not exist")
    assert isinstance(error, NotFound) and error.code == "no-queue" and str(error) == "queue 'x' does not exist"
    assert error_from_wire("from-the-future", "").code == "from-the-future"


def test_environment_goes_over_file_and_file_over_defaults(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text('port = 1234\nresume_s = 5\nhost = "127.0.0.2"\n')
    config = Config.load(path, environ={"FASTMQ_PORT": "99", "FASTMQ_WORKERS": "3", "OTHER": "x"})
    assert (config.port, config.resume_s, config.host, config.workers) == (99, 5.0, "127.0.0.2", 3)
    assert Config.from_map(config.to_map()) == config


def test_variable_that_is_called_nearly_as_a_setting_is_noticed():
    environ = {"FASTMQ_WORKER": "2", "FASTMQ_PUBLISH_WINDOW_BYTE": "1", "FASTMQ_WORKERS": "3", "FASTMQ_URL": "", "WORKER": "1"}
    environ |= {"FASTMQ_SERVICE_HOST": "10.0.0.1", "FASTMQ_PORT_7400_TCP": "tcp://10.0.0.1:7400"}       # as Kubernetes and Docker name them
    environ |= {f"FASTMQ_{name}": "" for name in ("POD", "UNIT", "DB_HOST", "UI_PORT", "0_PORT", "EVENTS_HOST", "RUN_ID")}
    assert misspelt(environ) == [("FASTMQ_PUBLISH_WINDOW_BYTE", "FASTMQ_PUBLISH_WINDOW_BYTES"), ("FASTMQ_WORKER", "FASTMQ_WORKERS")]


@pytest.mark.parametrize(
    "text, names",
    [
        ("porrt = 1", "porrt"), ('port = "x"', "port"), ("port = 70000", "port"), ("port = ", "TOML"), ("port = true", "port"),
        ("ring_size = 5000", "power of two"), ('unix = "@"', "unix"), (f'unix = "/{"x" * 100}"', "101 bytes"), ('unix = "a\\u0000"', "unix"),
        ('unix = "x"\nunix_mode = "0800"', "unix_mode"), ('unix = "x"\nunix_mode = "4755"', "unix_mode"), ("unix_mode = 600", "unix_mode"),
    ],
)
def test_bad_setting_is_named(tmp_path, text, names):
    path = tmp_path / "broker.toml"
    path.write_text(text)
    with pytest.raises(BadArgument, match=names):
        Config.load(path, environ={})


def test_unix_socket_has_an_absolute_path_and_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(unix="a b?")
    assert (config.unix, config.unix_events) == (f"{tmp_path}/a b?", f"{tmp_path}/a b?.events")
    assert config.unix_url == f"fastmq+unix://{tmp_path}/a%20b%3F"
    assert Config(unix="@name").unix_url == "fastmq+unix://@name"
    assert Config().unix_url is None


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BadArgument, match=r"nowhere\.toml"):
        Config.load(tmp_path / "nowhere.toml", environ={})


def test_shard_of_a_queue_never_changes():
    assert shard_of("/", "a", 64) == 51 and shard_of("/", "orders", 64) == 14
    assert shard_of("/", "x.{tag}.1", 64) == shard_of("/", "y.{tag}.2", 64)
    assert shard_of("/", "{}", 64) != shard_of("other", "{}", 64)


def test_version_of_the_package_is_that_of_the_program():
    assert tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"] == fastmq.__version__
