"""Environments: worlds in which a selection's worth is known exactly, to compare selectors in seconds."""
