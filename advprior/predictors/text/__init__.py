"""The text prior: advertisers known by what is written of them."""
