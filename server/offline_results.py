"""Where the answers of `tocom classify` go, and what of them is there already.

JSON lines and CSV grow line by line in a file, which a later call continues. A line that an
interruption cut in half is taken off first. Every line says of which model and degree it is, so
that a file never mixes two.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from server.errors import SettingsError

Format = Literal["text", "json", "jsonl", "csv"]
Result = Mapping[str, Any]

GROWING: Mapping[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
"""Formats of a file, by its suffix."""


_MEND = "name another file, or --overwrite"

# Names of files need not be UTF-8: what is not is written as it is, and read back the same.
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class ResultFile:
    """A file of answers that grows, and may have been begun by an earlier call.

    Args:
        path: where; made if it is not there.
        top_k: classes per image.
        run: what all answers of this call have in common: model, r.
        overwrite: forget what is there.

    Attributes:
        done: the files whose answers are there already.
        failed: how many of them could not be classified.

    Raises:
        SettingsError: the name does not say a format that grows, or the file holds something else.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, top_k: int, run: Mapping[str, Any], *, overwrite: bool) -> None:
        kind = GROWING.get(path.suffix.lower())
        if kind is None:
            raise SettingsError(f"--output {path}: name it .jsonl or .csv; that decides the format")
        self.path, self.kind, self._run = path, kind, run
        self._columns = csv_columns(top_k)
        self.done: set[str] = set()
        self.failed = 0
        if overwrite:
            path.unlink(missing_ok=True)
        if path.exists():
            with path.open(**_TEXT) as stream:
                self._take_up(str(stream.read()))
        self._stream = path.open("a", **_TEXT)
        if kind == "csv" and not path.stat().st_size:
            _writer(self._stream).writerow(self._columns)

    def write(self, results: Iterable[Result]) -> None:
        """Add answers; they are on their way to the disk when this returns."""
        for result in results:
            if self.kind == "csv":
                _writer(self._stream).writerow(csv_row(result, self._columns))
            else:
                self._stream.write(_json_line(result) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def _take_up(self, text: str) -> None:
        """Learn what is there, and cut off a half line."""
        whole, rows = self._rows(text)
        begun = ",".join(self._columns) + "\n" if self.kind == "csv" else '{"file": '
        if text and not whole and not (begun.startswith(text) or text.startswith(begun)):
            raise SettingsError(f"{self.path} is no file of answers: {_MEND}")
        for row in rows:
            if other := [n for n in self._run if str(row.get(n)) != str(self._run[n])]:
                name = other[0]
                raise SettingsError(
                    f"{self.path} holds answers with {name}={row.get(name)}, this call would add "
                    f"{name}={self._run[name]}: name another file, or --overwrite"
                )
            self.done.add(str(row["file"]))
            self.failed += bool(row.get("error"))
        if len(whole) < len(text):  # in place: an interruption now must not lose what is whole
            os.truncate(self.path, len(whole.encode(_TEXT["encoding"], _TEXT["errors"])))

    def _rows(self, text: str) -> tuple[str, list[Mapping[str, Any]]]:
        """The whole lines, as text and as records."""
        whole = text[: _end_of_rows(text, self.kind)]
        try:
            if self.kind == "jsonl":
                answers = [dict(json.loads(line)) for line in whole.split("\n")[:-1]]
                return whole, [{**answer, "file": answer["file"]} for answer in answers]
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            rows: list[Mapping[str, Any]] = list(reader)
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise SettingsError(
                f"{self.path} is no file of answers ({type(error).__name__}: {error}): {_MEND}"
            ) from None
        if whole and list(reader.fieldnames or ()) != self._columns:
            raise SettingsError(
                f"{self.path} has other columns than this call would write (another --top-k?): "
                "name another file, or --overwrite"
            )
        return whole, rows


def _end_of_rows(text: str, kind: Format) -> int:
    """Where the last whole row ends; a line break within quotes ends none of a table."""
    if kind != "csv":
        return text.rfind("\n") + 1
    end, place, quoted = 0, 0, False
    for piece in text.split("\n")[:-1]:
        quoted ^= piece.count('"') % 2 == 1
        place += len(piece) + 1
        if not quoted:
            end = place
    return end


def csv_columns(top_k: int) -> list[str]:
    """Return the header of a table of the `top_k` likeliest classes."""
    each = [f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "index", "score")]
    return ["file", "model", "r", *each, "error"]


def csv_row(result: Result, columns: Sequence[str]) -> list[Any]:
    """Return one answer as a row of such a table; empty where there is nothing."""
    flat = {name: result[name] for name in ("file", "model", "r", "error") if name in result}
    for k, prediction in enumerate(result.get("predictions", ()), 1):
        flat |= {f"{name}_{k}": value for name, value in prediction.items()}
    return [flat.get(name, "") for name in columns]


def _writer(stream: TextIO) -> Any:
    return csv.writer(stream, lineterminator="\n")


def _json_line(result: Result) -> str:
    """As people read it, unless a name of a file is no text."""
    line = json.dumps(result, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(result)
    return line


def show(kind: Format, results: Iterable[Result], top_k: int) -> None:
    """Print answers as they come; a JSON list is whole only at its end."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="surrogateescape")  # names of files need not be text
    if kind == "json":
        print(json.dumps(list(results), indent=2), file=stream)
        return
    columns = csv_columns(top_k)
    if kind == "csv":
        _writer(stream).writerow(columns)
    for result in results:
        if kind == "csv":
            _writer(stream).writerow(csv_row(result, columns))
        elif kind == "jsonl":
            print(_json_line(result), file=stream, flush=True)
        else:
            print(*_lines(result), sep="\n", file=stream, flush=True)


def _lines(result: Result) -> Iterator[str]:
    if "error" in result:
        yield f"{result['file']}: not classified: {result['error']}"
        return
    yield f"{result['file']}: r={result['r']}"
    for prediction in result["predictions"]:
        yield f"  {prediction['score']:7.2%}  {prediction['label']}"
