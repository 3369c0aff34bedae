"""All of the LLM that needs torch: where it comes from, how it is tuned and exported."""

from advprior.predictors.tuning.transformers_import import import_transformers

import_transformers()  # before a module here imports anything of it
