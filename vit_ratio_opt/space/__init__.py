"""Pairs of ratios, search spaces and costs. Standard library only."""
