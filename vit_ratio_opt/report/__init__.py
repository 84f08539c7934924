"""Tables, figures, pages and notes of studies. It reads records only."""
