"""What a pair of ratios is, and what it costs. Standard library only."""
