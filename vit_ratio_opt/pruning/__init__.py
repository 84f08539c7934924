"""Criteria, factorisation, reconstruction, allocation and tokens. It never imports optuna."""
