"""Models and runs, counted and compared: what the tables of the paper and of `docs/` are made with."""
