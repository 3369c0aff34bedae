"""What the numbers say: metrics, lift, segments, ablation, rolling origin, verdict, report."""
