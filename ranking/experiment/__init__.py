"""An online experiment: who is in which arm, what was shown, and the outcomes."""
