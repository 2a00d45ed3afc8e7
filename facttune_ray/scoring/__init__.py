"""Pure arithmetic on answers, verdicts and rewards: no Ray, no input or output."""
