"""Build, open and search a knowledge source."""
