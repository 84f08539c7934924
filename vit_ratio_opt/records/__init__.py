"""The typed schema of a study: settings, trials, the answer. It never imports torch."""
