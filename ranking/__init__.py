"""ranking: what priors do to a ranker. Frames through Feast, LightGBM, ablations, lift, reports.

Never imports `advprior`, torch, transformers, optimum or onnxruntime: priors arrive through Feast.
"""
