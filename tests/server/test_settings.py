"""Configuration: one definition, three spellings, and errors that say how to mend them."""

import logging
import os
from pathlib import Path

import pytest

from server.errors import SettingsError
from server.settings import ONLY_VARIABLES, Settings
from server.settings_sources import build_parser, flag_of, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the variables of the machine out of the tests."""
    for name in list(os.environ):
        if name.upper().startswith("TOCOM_"):
            monkeypatch.delenv(name)


SAMPLES = {
    "host": "0.0.0.0",
    "port": "9000",
    "api_keys_file": "keys.txt",
    "allow_anonymous": "yes",
    "allowed_hosts": "tocom.example, other.example",
    "trusted_proxies": "10.0.0.0/8, ::1",
    "rate_limit": "2.5",
    "rate_burst": "10",
    "max_connections": "100",
    "max_connections_per_client": "10",
    "max_header_bytes": "4096",
    "header_timeout_s": "5",
    "min_body_rate": "10",
    "model": "vit_tiny_patch16_224",
    "architecture": "vit_tiny_patch16_224",
    "labels": "labels.txt",
    "bank": "none",
    "r_source": "4",
    "scaling": "0.05",
    "models_dir": "models",
    "canary_agreement": "0.8",
    "method": "prune",
    "prop_attn": "false",
    "device": "cuda:1",
    "devices": "cuda:1",
    "switch_cache_mb": "64",
    "attention": "channels",
    "dtype": "bfloat16",
    "threads": "2",
    "backend": "eager",
    "max_graphs": "12",
    "lanes": "1",
    "max_batch_size": "8",
    "max_queue_delay_ms": "1.5",
    "queue_size": "64",
    "slo_ms": "100",
    "default_deadline_ms": "500",
    "shed_late": "false",
    "policy": "static",
    "mode": "shadow",
    "static_r": "3",
    "steady_r": "4",
    "max_r": "12",
    "min_accuracy": "0.7",
    "dwell_s": "1.5",
    "profile": "profile.json",
    "idle_profiling": "no",
    "live_share": "0.1",
    "live_accuracy": "true",
    "max_image_bytes": "1000",
    "max_image_pixels": "1000",
    "max_files": "4",
    "max_body_bytes": "4000",
    "decode_workers": "1",
    "drain_timeout_s": "5",
    "log_level": "debug",
    "log_format": "json",
    "log_share": "0.25",
    "traces": "otlp",
}


def test_samples_name_every_setting() -> None:
    """The parity test below covers all settings, new ones included."""
    assert set(SAMPLES) == set(Settings.model_fields) - {"config"} - ONLY_VARIABLES


def test_flag_variable_and_key_mean_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flags, environment variables and YAML keys of the same values give equal settings."""
    by_flags = load_settings([part for k, v in SAMPLES.items() for part in (flag_of(k), v)])

    path = tmp_path / "tocom.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in SAMPLES.items()))
    by_file = load_settings(["--config", str(path)])

    for name, value in SAMPLES.items():
        monkeypatch.setenv(f"TOCOM_{name.upper()}", value)
    by_environment = load_settings([])

    assert by_flags == by_environment
    assert by_file.model_dump(exclude={"config"}) == by_flags.model_dump(exclude={"config"})
    for name in SAMPLES:
        assert getattr(by_flags, name) != getattr(Settings.model_construct(), name), name


def test_flags_beat_variables_beat_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The more specific source wins; TOCOM_CONFIG names the file."""
    path = tmp_path / "tocom.yaml"
    path.write_text("port: 1\nmax_files: 1\nqueue_size: 1\n")
    monkeypatch.setenv("TOCOM_CONFIG", str(path))
    monkeypatch.setenv("TOCOM_PORT", "2")
    monkeypatch.setenv("TOCOM_MAX_FILES", "2")
    settings = load_settings(["--port", "3"])
    assert (settings.port, settings.max_files, settings.queue_size) == (3, 2, 1)


def test_keys_come_from_a_variable_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No flag and no YAML key takes API keys, and nothing that prints settings tells them."""
    secret = "never-to-be-seen-0123456789abcdef"
    for argv in (["--api-keys", secret], [f"--api-keys={secret}"]):
        with pytest.raises(
            SettingsError, match="unknown flag --api-keys; did you mean --api-keys-f"
        ) as e:
            load_settings(argv)
        assert secret not in str(e.value)
    path = tmp_path / "tocom.yaml"
    path.write_text(f"api_keys: {secret}\n")
    with pytest.raises(SettingsError, match="unknown key 'api_keys'") as e:
        load_settings(["--config", str(path)])
    assert secret not in str(e.value)
    monkeypatch.setenv("TOCOM_API_KEYS", secret)
    settings = load_settings([])
    assert settings.api_keys is not None and settings.api_keys.get_secret_value() == secret
    assert secret not in f"{settings!r} {settings} {settings.model_dump_json()}"
    monkeypatch.setenv("TOCOM_PORT", "wrong")
    with pytest.raises(SettingsError) as e:
        load_settings([])
    assert secret not in str(e.value)


def test_defaults_are_valid_and_frozen() -> None:
    """Without any source the documented defaults hold, and nobody can change them later."""
    settings = load_settings([])
    assert (settings.host, settings.port, settings.max_batch_size) == ("127.0.0.1", 8000, 32)
    assert (settings.slo_s, settings.max_batch_s) == (0.25, 0.125)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max-batchsize", "4"], ["--max-batchsize", "--max-batch-size"]),
        (["--max_batch_size=4"], ["--max_batch_size", "--max-batch-size"]),
        (["--port", "abc"], ["--port='abc'", "integer"]),
        (["--port", "70000"], ["--port='70000'", "65535"]),
        (["--port"], ["--port", "expected one argument"]),
        (["--dtype", "fp16"], ["--dtype='fp16'", "bfloat16"]),
        (["--slo-ms", "nan"], ["--slo-ms", "finite"]),
        (["--slo-ms", "-5"], ["--slo-ms='-5'", "greater than 0"]),
        (["--min-accuracy", "92"], ["--min-accuracy", "0 to 1"]),
        (["--device", "gpu"], ["--device='gpu'", "cuda"]),
        (["photo.jpg"], ["photo.jpg", "--name value"]),
        (["--static-r", "3"], ["static_r=3", "policy"]),
        (["--trusted-proxies", "10.0.0.1/8"], ["--trusted-proxies", "host bits"]),
        (["--rate-burst", "3"], ["rate_burst=3", "rate_limit"]),
        (["--policy", "static", "--static-r", "9", "--max-r", "8"], ["static_r=9", "max_r=8"]),
        (["--steady-r", "9", "--max-r", "8"], ["steady_r=9", "max_r=8"]),
    ],
)
def test_bad_flags_are_refused_by_name(argv: list[str], expected: list[str]) -> None:
    """The message names the flag and its value and says what was expected."""
    with pytest.raises(SettingsError) as raised:
        load_settings(argv)
    for part in expected:
        assert part in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_bad_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that comes from the environment is reported under the variable's name."""
    monkeypatch.setenv("TOCOM_QUEUE_SIZE", "many")
    with pytest.raises(SettingsError, match="TOCOM_QUEUE_SIZE='many'"):
        load_settings([])


def test_all_bad_values_are_reported_at_once() -> None:
    """One run shows every mistake, a line each."""
    with pytest.raises(SettingsError) as raised:
        load_settings(["--port", "abc", "--queue-size", "0"])
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batchsize: 4\n", ["'max_batchsize'", "did you mean max_batch_size?"]),
        ("max-batch-size: 4\n", ["'max-batch-size'", "did you mean max_batch_size?"]),
        ("zzz: 4\n", ["'zzz'"]),
        ("config: other.yaml\n", ["'config'"]),
        ("port: abc\n", ["port in", "'abc'"]),
        ("port: yes\n", ["port in", "boolean"]),
        ("- port\n", ["name: value"]),
        ("port: [\n", ["no valid YAML"]),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, expected: list[str]) -> None:
    """Unknown keys, wrong values and broken files are named together with the path."""
    path = tmp_path / "tocom.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(["--config", str(path)])
    for part in [*expected, str(path)]:
        assert part in str(raised.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A settings file that cannot be read stops the start-up and is named."""
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load_settings(["--config", str(tmp_path / "nowhere.yaml")])


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    """A file with only comments is fine."""
    path = tmp_path / "tocom.yaml"
    path.write_text("# nothing yet\n")
    assert load_settings(["--config", str(path)]).port == 8000


def test_unknown_variables_warn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistyped variable is pointed out with its nearest name; TOCOM_DATA is known."""
    monkeypatch.setenv("TOCOM_MAX_BATCHSIZE", "4")
    monkeypatch.setenv("TOCOM_DATA", "somewhere")
    with caplog.at_level(logging.WARNING):
        settings = load_settings([])
    assert settings.max_batch_size == 32
    [record] = caplog.records
    assert "TOCOM_MAX_BATCHSIZE" in record.getMessage()
    assert "TOCOM_MAX_BATCH_SIZE" in record.getMessage()


def test_kubernetes_service_link_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOCOM_PORT as injected for a service named tocom is refused with the cure."""
    monkeypatch.setenv("TOCOM_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(SettingsError, match="enableServiceLinks"):
        load_settings([])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], None),
        (["--prop-attn"], True),
        (["--prop-attn", "on"], True),
        (["--prop-attn=false"], False),
        (["--no-prop-attn"], False),
    ],
)
def test_boolean_flag(argv: list[str], expected: bool | None) -> None:
    """A boolean can be given bare, with a value, negated, or left unset."""
    assert load_settings(argv).prop_attn is expected


def test_unset_can_be_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """'none' and an empty variable unset what is unset by default; bank keeps its own 'none'."""
    monkeypatch.setenv("TOCOM_MAX_R", "")
    monkeypatch.setenv("TOCOM_MIN_ACCURACY", "0.5")
    settings = load_settings(["--min-accuracy", "none", "--bank", "none"])
    assert (settings.max_r, settings.min_accuracy, settings.bank) == (None, None, "none")


def test_help_names_every_setting() -> None:
    """The help is generated: each flag with its description and default."""
    text = " ".join(build_parser().format_help().split())
    for name, field in Settings.model_fields.items():
        assert flag_of(name) in text
        assert field.description is not None
        assert field.description.split()[0] in text
    assert "[8000]" in text
