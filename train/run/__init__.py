"""The run folder: its files, curves, report and progress table."""
