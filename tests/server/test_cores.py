"""How many cores a process may use: affinity, and what its container allows."""

from pathlib import Path

import pytest

from server import cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 6), ("400000 100000", 4), ("250000 100000", 3), ("1000 100000", 1),
     ("9900000 100000", 6), ("nonsense", 6), ("100000 0", 6)],
)  # fmt: skip
def test_the_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
):
    """Up to the affinity, rounded up; what cannot be read is no limit."""
    monkeypatch.setattr(cores, "affinity", lambda: 6)
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cores.usable_cores(tmp_path) == expected


def test_without_control_groups_the_affinity_counts(tmp_path: Path):
    """Another system, or the first version of them."""
    assert cores.usable_cores(tmp_path) == cores.affinity() >= 1
