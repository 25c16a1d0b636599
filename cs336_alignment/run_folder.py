"""The folder that every command writes which trains or evaluates.

    run.json            config, protocol, git commit, versions, hardware, seeds
    metrics.jsonl       one JSON object a line
    completions/*.jsonl what the policy wrote, graded
    report.md, *.png    for people

Whole files are written beside their place, synced and renamed, so that a file that is there is complete. Lines are
appended and synced; a line that a kill cut short is dropped when the file is read.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

LOCK = ".lock"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, or leave it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON, atomically; paths become strings."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The object that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomically(path, "".join(_line(row) for row in rows))


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append one JSON object a line, and sync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(_line(row) for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_complete_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that may end in a line cut short, or may not exist."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.split("\n") if line]  # not splitlines: U+2028 ends no line here


class UsageError(Exception):
    """The options, or what they name, cannot be used; the message says what to do."""


def lock_folder(folder: Path) -> TextIO:
    """Make a run folder where there is none, find out that it can be written to, and keep other processes out of it
    until the returned file is closed.

    Raises:
        UsageError: it cannot be written to, or another process works on it.
    """
    if folder == Path():
        raise UsageError("--output names no folder, but the one that the command was started in")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read()
            raise UsageError(f"--output: another process ({other}) works on {folder}: name another folder") from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"--output: {folder} cannot be written to: {error.strerror}") from error
    return file


def forget_failed_start(folder: Path, metrics: str) -> None:
    """Remove the record of a run that ended before its first line of metrics: its folder may be used anew."""
    if not read_complete_json_lines(folder / metrics):
        (folder / "run.json").unlink(missing_ok=True)


class OtherRunError(UsageError):
    """A run folder holds a run that was started differently."""


def check_same_run(
    folder: Path, part: Literal["config", "protocol"], now: dict[str, Any], unmatched: Sequence[str] = ()
) -> None:
    """Refuse to go on with a run that was begun differently; a folder without a run is fine.

    Args:
        folder: the run folder.
        part: of run.json that has to match.
        now: what it would be for this run.
        unmatched: names in it, at any depth, that may differ.

    Raises:
        OtherRunError: it does not match; the message names the fields.
    """
    path = folder / "run.json"
    if not path.exists():
        return
    before, now = _flat(read_json(path)[part]), _flat(json.loads(json.dumps(now, default=str)))
    differing = sorted(name for name in {*now, *before} if before.get(name) != now.get(name))
    changed = [name for name in differing if name.rpartition(".")[2] not in unmatched]
    if changed:
        raise OtherRunError(f"{folder} was started with another {', '.join(changed)}: resume with the same options")


def record_session(folder: Path, config: Any, protocol: Any, session: Any) -> None:
    """Write run.json, or add this session to that of a run that goes on, whose config and protocol stay as they were.

    Args:
        folder: the run folder.
        config, protocol: what the run was asked to do, and what its figures depend on.
        session: where and with what this process runs.
    """
    path = folder / "run.json"
    record = read_json(path) if path.exists() else {"config": config, "protocol": protocol, "sessions": []}
    record["sessions"].append(session)
    write_json(path, record)


def _flat(tree: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Nested dicts as one, its names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{within}{name}.") if isinstance(value, dict) else {within + name: value}
    return flat


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
