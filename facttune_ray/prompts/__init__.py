"""Every prompt text, one `.txt` a template, beside its parser."""
