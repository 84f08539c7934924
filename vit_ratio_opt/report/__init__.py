"""What people look at: tables, figures, pages, notes. It reads records only."""
