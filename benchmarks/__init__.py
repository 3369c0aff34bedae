"""What is timed, against what. Ratios from one run: machines differ, and a shared one drifts."""
