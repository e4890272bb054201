"""What keeps a run alive: its state, its files, its processes, signals, the clock."""
