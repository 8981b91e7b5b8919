"""The trainer of preference pairs: what runs on every training worker, on TRL, transformers and PEFT.

Nothing of it is imported elsewhere.
"""
