"""Optimal design: which pairs of a pool teach the policy most for a labelling budget. Arrays in, arrays out."""
