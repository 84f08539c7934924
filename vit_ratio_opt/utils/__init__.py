"""Files, text and versions, on the standard library."""
