"""API keys: what their lines mean, where they are kept, and whether one that is shown is known.

Kept is the SHA-256 of a key, never the key. A slow hash such as argon2 is for passwords, which
people choose and an attacker can guess; these keys are 256 random bits (`tocom key` makes them, and
short ones are refused), so that nobody guesses one from its hash however fast the hash is, and a
fast one costs each request a microsecond instead of a tenth of a second.
"""

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from server.errors import SettingsError

Scope = Literal["inference", "control", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

KEY_PREFIX = "tocom_"
"""Lets scanners for leaked secrets find our keys."""

MIN_KEY_LENGTH = 32
_MIN_DISTINCT = 12
"""Characters; a key of one's own with fewer different ones is not random."""

_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_FORMAT = "expected 'name scopes key', for example the line that 'tocom key NAME' prints"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is known: whose it is, and what it is good for."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)


class KeyRing:
    """All keys that are known."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, shown: bytes) -> ApiKey | None:
        """The key that was shown, if it is known; takes equally long for any that has a length."""
        digest = hashlib.sha256(shown).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_key() -> str:
    """A key that nobody guesses."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def key_line(name: str, scopes: Sequence[Scope], key: str) -> str:
    """The line of a key file that makes this key known, without telling it.

    Raises:
        SettingsError: the name or a scope cannot be.
    """
    line = f"{name} {','.join(scopes)} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    _read_line(line, "the new key")
    return line


def load_keys(variable: str | None, file: Path | None) -> KeyRing | None:
    """The keys of both places; None if neither is given.

    Args:
        variable: lines, separated by line breaks or semicolons.
        file: a file of lines; empty ones and those that begin with ``#`` do not count.

    Raises:
        SettingsError: a line is wrong, the file cannot be read or is open to others, or there is
            no key. No message tells a key.
    """
    if variable is None and file is None:
        return None
    keys: list[ApiKey] = []
    if variable is not None:
        keys += _read(re.split(r"[\n;]", variable), "TOCOM_API_KEYS")
    if file is not None:
        keys += _read(_lines(file), str(file))
    if not keys:
        raise SettingsError(f"{file or 'TOCOM_API_KEYS'} holds no API key; 'tocom key' makes one")
    _refuse_doubles(keys)
    return KeyRing(keys)


def _lines(file: Path) -> list[str]:
    """A key file's lines, if others cannot write it nor, where it holds plain keys, read it."""
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"cannot read the API keys in {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the API keys in {file} are no UTF-8 text") from None
    if mode & stat.S_IWOTH:
        raise SettingsError(f"everybody may write the API keys in {file}: chmod o-w {file}")
    plain = any(not _HASH.search(line) for line in lines if line.split("#")[0].strip())
    if plain and mode & stat.S_IROTH:
        raise SettingsError(
            f"everybody may read the API keys in {file}: chmod 600 {file}, or keep their hashes "
            "there ('tocom key' prints such lines)"
        )
    return lines


def _read(lines: Sequence[str], where: str) -> Iterator[ApiKey]:
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _read_line(line, f"{where}, line {number}")


def _read_line(line: str, where: str) -> ApiKey:
    """One key; no error tells what could be a key."""
    words = line.split()
    if len(words) != 3:
        raise SettingsError(f"{where}: {len(words)} words; {_FORMAT}")
    name, listed, key = words
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: the name may have letters, digits and ._@- (64 at most)")
    scopes = frozenset(scope for scope in SCOPES if scope in listed.split(","))
    if len(scopes) != len(set(listed.split(","))):
        raise SettingsError(f"{where}: the scopes of {name!r} must be some of {','.join(SCOPES)}")
    return ApiKey(name, scopes, _digest(key, f"{where}: the key of {name!r}"))


def _digest(key: str, whose: str) -> bytes:
    if key.lower().startswith("sha256:"):
        found = _HASH.fullmatch(key.replace("SHA256:", "sha256:"))
        if found is None:
            raise SettingsError(f"{whose} has a hash that is no 64 hexadecimal digits")
        return bytes.fromhex(found[1])
    if len(key) < MIN_KEY_LENGTH or len(set(key)) < _MIN_DISTINCT:
        raise SettingsError(
            f"{whose} can be guessed: it needs {MIN_KEY_LENGTH} random characters at least; "
            "'tocom key' makes one"
        )
    return hashlib.sha256(key.encode()).digest()


def _refuse_doubles(keys: Sequence[ApiKey]) -> None:
    names: set[str] = set()
    digests: set[bytes] = set()
    for key in keys:
        if key.name in names:
            raise SettingsError(f"two API keys are named {key.name!r}; give each its own name")
        if key.digest in digests:
            raise SettingsError(f"the API key of {key.name!r} is another one's too; make a new one")
        names.add(key.name)
        digests.add(key.digest)
