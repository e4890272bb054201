"""How a run tells the world: bars and log lines, curves, TensorBoard and W&B."""
