"""The results of commands, each with its file format and reader."""
