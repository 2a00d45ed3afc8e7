"""The embedded default: a tiny base model and a rule-based endpoint, the annotator."""
