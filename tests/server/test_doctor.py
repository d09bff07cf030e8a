"""`tocom doctor`: what it finds on fit and unfit machines, and that it never breaks down itself."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from server import cli, doctor_machine, doctor_model
from server.findings import Finding, examine
from server.settings import Settings
from tocom_core.bank import Bank
from tocom_core.models import default_model_path


def by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    """The last finding of each check."""
    return {finding.check: finding for finding in findings}


def test_the_shipped_model_is_fit(capsys: pytest.CaptureFixture[str]):
    """Nothing to mend with a free port; JSON tells the same."""
    assert cli.main(["doctor", "--json", "--port=0", "--slo-ms=60000"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {finding["check"]: finding for finding in told["findings"]}
    assert told["ok"]
    assert {"versions", "memory", "address", "device", "model", "speed", "bank"} <= set(found)
    assert "r from 0 to 16" in found["model"]["found"]
    assert found["bank"]["level"] == "ok"


def test_a_wrong_flag_is_a_finding(capsys: pytest.CaptureFixture[str]):
    """It says which, and ends with 1; nothing is loaded for it."""
    assert cli.main(["doctor", "--max-batchsize=3"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM" in shown and "--max-batch-size" in shown and "1 problem" in shown


def test_what_nobody_foresaw_is_a_finding_too():
    """One look that fails does not keep the others from being taken."""

    def broken() -> Iterator[Finding]:
        yield Finding("one", "ok", "seen")
        raise ZeroDivisionError("oops")

    seen, failed = examine("thing", broken)
    assert seen.level == "ok"
    assert (failed.level, failed.found) == ("problem", "ZeroDivisionError: oops")


def test_a_taken_port_and_an_open_address():
    """Both are problems, each with its way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (found,) = examine("address", lambda: doctor_machine.address(Settings(port=port)))
    assert found.level == "problem" and "--port 0" in found.found
    everybody = Settings(host="0.0.0.0", port=0)
    (found,) = examine("address", lambda: doctor_machine.address(everybody))
    assert found.level == "problem" and "TOCOM_API_KEYS_FILE" in found.found


def test_keys_that_others_can_read(tmp_path: Path):
    """Found before somebody else finds them."""
    file = tmp_path / "keys"
    file.write_text("ops control tk_" + "k" * 43 + "\n")
    file.chmod(0o644)
    settings = Settings(api_keys_file=file)
    (found,) = examine("keys", lambda: doctor_machine.keys(settings))
    assert found.level == "problem" and "chmod 600" in found.found


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        ("numpy>=1", ""),
        ("numpy>=1000", "numpy is "),
        ("no-such-package>=1", "no-such-package is missing"),
        ('no-such-package>=1; extra == "gpu"', ""),
        ('numpy>=1000; extra == "gpu"', "numpy is "),
        ('no-such-package; python_version < "3"', ""),
    ],
)
def test_versions_against_what_is_needed(wanted: str, wrong: str):
    """Missing or too old; what belongs to an extra may be missing, but not too old."""
    assert doctor_machine._unmet(Requirement(wanted)).startswith(wrong)
    assert bool(doctor_machine._unmet(Requirement(wanted))) == bool(wrong)


def test_more_threads_than_a_container_may_use(tmp_path: Path):
    """The quota of the control group counts, not the machine's cores."""
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (found,) = doctor_machine.cores(Settings(threads=2), tmp_path)
    assert found.level == "warning" and "--threads 1" in found.mend
    (found,) = doctor_machine.cores(Settings(), tmp_path)
    assert found.level == "ok"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (found,) = doctor_machine.cores(Settings(threads=1), tmp_path)
    assert found.level == "ok"
    many = Settings(threads=1 + len(os.sched_getaffinity(0)))
    (found,) = doctor_machine.cores(many, tmp_path)
    assert found.level == "warning"


def test_memory_is_the_containers_or_the_machines(tmp_path: Path):
    """Whichever is less."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 4194304 kB\n")
    assert doctor_machine.memory_left_mib(tmp_path, meminfo) == 4096
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    assert doctor_machine.memory_left_mib(tmp_path, meminfo) == 512
    (found,) = doctor_machine.memory(tmp_path, meminfo)
    assert found.level == "warning" and "512 MiB" in found.found


def test_settings_that_cannot_work(tmp_path: Path):
    """A folder that is not there; a queue that fills no batch."""
    settings = Settings(models_dir=tmp_path / "no", queue_size=4, max_batch_size=8)
    levels = [finding.level for finding in doctor_machine.extras(settings)]
    assert levels == ["problem", "warning"]


def test_a_model_without_its_bank_or_profile_and_an_slo_nobody_keeps():
    """Each is told with its remedy, and the accuracy floor that leaves no degree."""
    settings = Settings(bank="none", profile="none", slo_ms=0.01, min_accuracy=0.999)
    found = by_check(doctor_model.model(settings))
    assert found["model"].level == "ok"
    assert found["bank"].level == "warning" and "tocom train" in found["bank"].mend
    assert found["profile"].level == "warning" and "tocom profile" in found["profile"].mend
    assert found["speed"].level == "problem" and "--slo-ms" in found["speed"].mend
    assert found["accuracy"].level == "problem"


def test_a_bank_of_another_backbone(tmp_path: Path):
    """It has the right shape, and was trained for other weights."""
    bank = Bank.load(default_model_path().with_name("bank.safetensors"))
    path = tmp_path / "bank.safetensors"
    bank.header = replace(bank.header, backbone_digest="0" * 64)
    bank.save(path)
    found = by_check(doctor_model.model(Settings(bank=str(path), profile="none")))
    assert found["bank"].level == "warning" and "trained on other weights" in found["bank"].found


def test_a_profile_of_another_machine(tmp_path: Path):
    """Its latencies are not this one's."""
    shipped = json.loads(default_model_path().with_name("profile.json").read_text())
    shipped["device"]["device"] = "Another CPU"
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(shipped))
    found = by_check(doctor_model.model(Settings(profile=str(path))))
    assert found["profile"].level == "warning" and "Another CPU" in found["profile"].found


def test_a_model_that_is_not_there():
    """The loader's own sentence."""
    settings = Settings(model="/nowhere/model.safetensors")
    (found,) = examine("model", lambda: doctor_model.model(settings))
    assert found.level == "problem" and "/nowhere/model.safetensors" in found.found
