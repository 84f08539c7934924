"""Where the two halves meet: objective, studies, workers, storage."""
