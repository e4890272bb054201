"""What a model can be told: texts, sounds, and whatever a plugin adds. One registry, one form for the network."""
