"""The command line: one module per command, which holds its options, its call and its text."""
