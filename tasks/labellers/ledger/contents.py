"""A pair by its content: its key, the order in which it is shown, the digest of a text."""

from dataclasses import replace
from hashlib import sha256

from tasks.labellers.protocol import Question


def question_key(prompt: str, *, first: str, second: str) -> str:
    """Hash a pair by content, whichever response comes first."""
    texts = [_encode(text) for text in (prompt, *sorted((first, second)))]
    return sha256(b"".join(len(text).to_bytes(8, "big") + text for text in texts)).hexdigest()


def shown_swapped(key: str, seed: int) -> bool:
    """Decide by hash whether the response that sorts last is shown first."""
    return bool(sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()[0] & 1)


def shown(question: Question, seed: int = 0) -> Question:
    """Put a question's responses in the order in which labellers see them: the same whoever asks, however turned."""
    first, second = sorted((question.first, question.second), reverse=shown_swapped(question.key, seed))
    return replace(question, first=first, second=second)


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return sha256(_encode(text)).hexdigest()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
