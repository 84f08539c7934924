"""The time that models take: measured, predicted, cached."""
