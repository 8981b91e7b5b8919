"""A model as judge, behind any OpenAI-compatible endpoint."""

from tasks.labellers.judge.judge import Judge, TokenPrices

__all__ = ["Judge", "TokenPrices"]
