"""Recipe, loop, evaluation, saved state, ranks."""
