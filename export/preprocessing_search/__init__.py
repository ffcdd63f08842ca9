"""Search for the pre-processing that a network was trained with."""
