"""Checkpoints as people have them: reading, naming schemes and what they state."""
