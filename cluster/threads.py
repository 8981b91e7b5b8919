"""Threads: lineages can run in several threads of a process, and torch keeps state that is the process's own."""

import threading

TORCH = threading.RLock()
"""Held where models are made or trained in this process: random numbers, default types and Ray Train's local mode are
shared by all of its threads."""
