"""FactTune (Tian et al., ICLR 2024) as a distributed system: see README.md."""
