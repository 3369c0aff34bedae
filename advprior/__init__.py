"""advprior: advertiser priors from a small LLM, measured on your own ranker.

Tables -> histories -> predictor -> log-probs -> priors in a Feast store. Heavy imports happen
inside functions, so that importing any module of the package is cheap.
"""

__version__ = "0.1.0"
