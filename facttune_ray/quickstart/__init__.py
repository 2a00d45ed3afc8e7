"""The embedded default: a fictional world, a tiny base model, a rule-based annotator."""
