"""Who computes log P(advertiser | history): the LLM and its controls, behind one interface."""
