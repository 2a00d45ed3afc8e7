"""Every prompt text, one `.txt` file per template, beside the parser of its answers."""
