"""Parts that several commands share: output, errors and options."""
