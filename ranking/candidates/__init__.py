"""Candidate generation: which ads reach the ranker, with towers alone and with slots for predicted advertisers.

Towers are trained in torch (``training`` alone imports it, when a fit runs) and served from plain arrays.
"""
