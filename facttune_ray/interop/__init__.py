"""The reference systems' file forms."""
