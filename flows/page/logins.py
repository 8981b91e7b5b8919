"""Logins of the labelling page: from the environment or a file that nobody else can read."""

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.errors import InputError

VARIABLE = "PAIRWRIGHT_LABEL_LOGINS"
MIN_PASSWORD = 8
MAX_NAME = 64


def read_logins(path: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Passwords by name; a file is preferred to the environment, and without both there are none.

    Raises:
        InputError: the file can't be read, or can be by others.
        InputError: lines that aren't name:password, told by number and never by content.
    """
    if path is not None:
        return _parse(_private_text(path).splitlines(), source=str(path), unit="line")
    text = environment.get(VARIABLE, "")
    return _parse(text.split(","), source=VARIABLE, unit="entry") if text.strip() else {}


def check_name(name: str) -> str:
    """The name of an annotator without white space around it.

    Raises:
        InputError: nothing is left, it is too long, or some of it can't be printed.
    """
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME or not stripped.isprintable():
        raise InputError(f"a name has 1 to {MAX_NAME} characters that can be printed: found {stripped[:MAX_NAME]!r}")
    return stripped


def _private_text(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"logins can't be read from {path} ({error}): expected lines of name:password") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"others may read the logins in {path} (mode {stat.S_IMODE(mode):04o}): run chmod 600 {path}")
    return text


def _parse(entries: Iterable[str], *, source: str, unit: str) -> dict[str, str]:
    logins: dict[str, str] = {}
    faults = []
    for number, entry in enumerate(entries, start=1):
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        name, _, password = entry.strip().partition(":")
        fault = _fault(name, password, logins)
        if fault:
            faults.append(f"{unit} {number} {fault}")
        logins[name.strip()] = password
    if faults or not logins:
        found = "; ".join(faults) or "no login in it"
        raise InputError(f"{source} does not fit: {found}: expected name:password, {MIN_PASSWORD} characters or more")
    return logins


def _fault(name: str, password: str, logins: Mapping[str, str]) -> str | None:
    try:
        check_name(name)
    except InputError:
        return "has no name that can be used"
    if len(password) < MIN_PASSWORD:
        return f"has a password of fewer than {MIN_PASSWORD} characters"
    return "repeats a name" if name.strip() in logins else None
