"""Where the halves meet: what the trials of a process share, and the files that they leave."""
