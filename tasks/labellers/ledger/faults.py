"""What databases complain of, and what to do about it."""

from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

_RESTORE = "restore it from a backup, or move it away to start a new one"
_ADVICE = {
    "SQLITE_BUSY": "another process holds it; wait for that to end, then try again",
    "SQLITE_LOCKED": "another process holds it; wait for that to end, then try again",
    "SQLITE_READONLY": "mend the permissions of the file and its folder; nothing was written",
    "SQLITE_CANTOPEN": "mend the permissions of the file and its folder",
    "SQLITE_PERM": "mend the permissions of the file and its folder",
    "SQLITE_FULL": "free some space and try again; what was paid before is kept, and nothing is half-written",
    "SQLITE_IOERR": "see that the disk is well and has space, then try again; nothing is half-written",
    "SQLITE_NOTADB": _RESTORE,
    "SQLITE_CORRUPT": _RESTORE,
    "55P03": "another process holds it; wait for that to end, then try again",
    "53100": "free some space on the server and try again; nothing is half-written",
    "42501": "grant the user the right to create and change tables",
    "25006": "the server takes no writes; name its primary",
}
_REACH = (
    "see that the server runs and can be reached from here, and that PAIRWRIGHT_LEDGER_URL names the right user, "
    "password and database, then try again; nothing is half-written"
)


def fault(error: DBAPIError) -> str | None:
    """What to do about a database's complaint; None where the complaint is about our own statement."""
    code = _code(error)
    known = next((advice for prefix, advice in _ADVICE.items() if code.startswith(prefix)), None)
    is_outside = type(error) in {OperationalError, DatabaseError}
    return known or (_REACH if is_outside else None)


def _code(error: DBAPIError) -> str:
    """SQLite's name of the error, or Postgres's state; empty where it has none, as before there's a connection."""
    return str(vars(error.orig).get("sqlite_errorname") or getattr(error.orig, "sqlstate", None) or "")
