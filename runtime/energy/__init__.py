"""What an image costs in energy: sources of power, their integral, millijoules."""
