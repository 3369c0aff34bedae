"""How catalogs' texts are encoded: one setting, whichever network reads them; nothing of it runs in a request."""
