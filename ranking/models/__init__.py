"""What is trained on a frame: arms, the LightGBM ranker, its calibration."""
