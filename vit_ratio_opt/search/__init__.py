"""Limits, plans and samplers of a search. Never imports torch."""
