"""Speed and memory, measured fairly: what the tables in `docs/` are made with."""
