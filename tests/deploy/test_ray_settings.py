"""What a Serve configuration can say of the replicas, and how it is refused."""

import os

import pytest

from deploy.ray import proxy_answers
from deploy.ray.__main__ import ROOT, parse, prepare_environment
from deploy.ray.replica_settings import read_settings
from server.errors import SettingsError


def test_settings_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch):
    """From the configuration, and below it from variables; None leaves one out."""
    monkeypatch.setenv("TOCOM_QUEUE_SIZE", "77")
    monkeypatch.setenv("TOCOM_SLO_MS", "10")
    read = read_settings({"slo_ms": 90, "shed_late": False, "max_r": None, "policy": "aimd"})
    assert (read.slo_ms, read.shed_late, read.max_r) == (90, False, None)
    assert (read.policy, read.queue_size) == ("aimd", 77)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"port": 9000}, "http_options.port"),
        ({"host": "0.0.0.0"}, "http_options.host"),
        ({"slo_ms": -1}, "--slo-ms"),
        ({"slow_ms": 1}, "did you mean --slo-ms"),
        ({"api_keys": "secret"}, "unknown flag"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, object], word: str):
    """By name, with what to do."""
    with pytest.raises(SettingsError, match=word):
        read_settings(given)


def test_the_command_line_has_both_kinds_of_flags():
    """Ray's, and those of `tocom serve`."""
    options, given = parse(["--replicas", "2", "--slo-ms", "90", "--cpus=0.5", "--no-shed-late"])
    assert options == {"address": None, "replicas": 2, "cpus": 0.5}
    assert given == {"slo_ms": "90", "shed_late": "false"}
    with pytest.raises(SettingsError, match="did you mean --slo-ms"):
        parse(["--slow-ms", "1"])


def test_ray_is_told_where_the_checkout_is_and_what_its_proxy_answers():
    """What is set already stays."""
    environment = {"PYTHONPATH": "/elsewhere", "RAY_USAGE_STATS_ENABLED": "1"}
    prepare_environment(environment)
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
    assert environment[proxy_answers.VARIABLE] == proxy_answers.CALLBACK
    assert environment["RAY_USAGE_STATS_ENABLED"] == "1"
