"""API keys: lines, files, hashes, and that no message tells one."""

import hashlib
import stat
from pathlib import Path

import pytest

from server import cli
from server.api_keys import SCOPES, key_line, load_keys, new_key
from server.errors import SettingsError

KEY = "Zq3-fT7xB9_kLmN2vW8yR4uH6jD1sG5aP0cEoI"


def private(path: Path, text: str) -> Path:
    """A key file that only its owner may read."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_key_is_known_by_itself_or_by_its_hash() -> None:
    """Plain and hashed lines mean the same; another key, none, and the hash itself are unknown."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for kept in (KEY, f"sha256:{digest}", f"sha256:{digest.upper()}"):
        ring = load_keys(f"# who\n\nalice inference,control {kept}", None)
        assert ring is not None
        found = ring.find(KEY.encode())
        assert found is not None and found.name == "alice"
        assert found.scopes == {"inference", "control"}
        for other in (KEY[:-1], KEY + "x", "", digest, f"sha256:{digest}"):
            assert ring.find(other.encode()) is None


def test_keys_are_not_kept() -> None:
    """Neither the ring nor a key it finds tells the key or its hash."""
    ring = load_keys(f"alice inference {KEY}", None)
    assert ring is not None
    digest = hashlib.sha256(KEY.encode())
    shown = f"{ring!r} {vars(ring)!r} {ring.find(KEY.encode())!r}"
    assert KEY not in shown and digest.hexdigest() not in shown
    assert repr(digest.digest()) not in shown


def test_both_places_count(tmp_path: Path) -> None:
    """Keys of the variable and of the file; semicolons separate those of the variable."""
    file = private(tmp_path / "keys", f"carol metrics {new_key()}\n")
    ring = load_keys(f"alice inference {KEY}; bob control {new_key()}", file)
    assert ring is not None and len(ring) == 3
    assert load_keys(None, None) is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (f"alice {KEY}", "2 words"),
        (f"alice inference {KEY} more", "4 words"),
        (f"al/ice inference {KEY}", "the name may have"),
        (f"alice everything {KEY}", "scopes of 'alice'"),
        (f"alice inference, {KEY}", "scopes of 'alice'"),
        ("alice inference hunter2hunter2", "can be guessed"),
        ("alice inference " + "ab" * 20, "can be guessed"),
        ("alice inference sha256:" + "0" * 63, "64 hexadecimal"),
        (f"alice inference {KEY}\nalice metrics {KEY}x", "two API keys are named 'alice'"),
        (f"alice inference {KEY}\nbob metrics {KEY}", "another one's too"),
        ("# nothing", "holds no API key"),
    ],
)
def test_a_wrong_line_is_explained_without_telling_the_key(lines: str, said: str) -> None:
    """The message says what is wrong; none holds what could be a key."""
    with pytest.raises(SettingsError) as raised:
        load_keys(lines, None)
    assert said in str(raised.value)
    secrets = [word for word in lines.split() if len(word) > 13]
    assert not any(secret in str(raised.value) for secret in secrets)


@pytest.mark.parametrize(
    ("mode", "kept", "said"),
    [
        (0o644, KEY, "everybody may read"),
        (0o604, KEY, "everybody may read"),
        (0o602, KEY, "everybody may write"),
        (0o646, key_line("a", ["inference"], KEY).split()[-1], "everybody may write"),
        (0o640, KEY, None),
        (0o644, key_line("a", ["inference"], KEY).split()[-1], None),
    ],
)
def test_a_file_that_others_can_use_is_refused(
    tmp_path: Path, mode: int, kept: str, said: str | None
) -> None:
    """Plain keys must not be readable by all, and no file writable; hashes may be read."""
    file = tmp_path / "keys"
    file.write_text(f"alice inference {kept}\n")
    file.chmod(mode)
    if said is None:
        assert load_keys(None, file) is not None
        return
    with pytest.raises(SettingsError, match=said) as raised:
        load_keys(None, file)
    assert "chmod" in str(raised.value) and kept not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    """Missing, or no text."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=str(file)):
        load_keys(None, file)


def test_tocom_key_makes_a_line_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints as a line makes what it prints as a key known, with the scopes asked for."""
    assert cli.main(["key", "alice", "--scopes", "control,inference"]) == 0
    printed = capsys.readouterr().out.splitlines()
    key, line = printed[0].removeprefix("key:  "), printed[1].removeprefix("line: ")
    assert key not in line and len(key) >= 48
    ring = load_keys(line, None)
    found = ring.find(key.encode()) if ring else None
    assert found is not None and found.scopes == {"inference", "control"}


def test_tocom_key_adds_to_a_private_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is made for its owner alone; a name that is there already leaves it as it was."""
    file = tmp_path / "keys"
    assert cli.main(["key", "alice", "--file", str(file)]) == 0
    first = capsys.readouterr().out.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().rstrip("\n"))
    assert cli.main(["key", "bob", "--scopes", ",".join(SCOPES), "--file", str(file)]) == 0
    second = capsys.readouterr().out.strip()
    ring = load_keys(None, file)
    assert ring is not None and len(ring) == 2
    assert [k.name for key in (first, second) if (k := ring.find(key.encode()))] == ["alice", "bob"]
    before = file.read_text()
    assert cli.main(["key", "bob", "--file", str(file)]) == cli.USAGE
    assert cli.main(["key", "carol", "--scopes", "all", "--file", str(file)]) == cli.USAGE
    assert file.read_text() == before


def test_no_two_keys_are_alike() -> None:
    """256 bits each, in an alphabet that survives shells and headers."""
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(key.isascii() and len(key) == len("tocom_") + 43 for key in keys)
