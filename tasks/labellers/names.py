"""Identities of labellers hold everything that decides an answer, and are long: names for people to read and type."""

import json
from hashlib import sha256
from typing import Any


def name_of(identity: str) -> str:
    """The kind of a labeller, who it is where it says so, and the beginning of a digest of its whole identity."""
    fields = _fields(identity)
    said = [str(fields[name]) for name in ("kind", "crew", "model") if isinstance(fields.get(name), str)]
    return ":".join([*(said or ["labeller"]), sha256(identity.encode()).hexdigest()[:8]])


def matches(identity: str, name: str) -> bool:
    """Whether a labeller is meant: by its identity, its name, its digest, or any word that is a field of it."""
    words = {value for value in _fields(identity).values() if isinstance(value, str)}
    return name in {identity, name_of(identity), name_of(identity).rpartition(":")[2], *words}


def _fields(identity: str) -> dict[str, Any]:
    try:
        fields = json.loads(identity)
    except json.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}
