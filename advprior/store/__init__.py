"""What the feature store holds, shared with `ranking`: names, schemas, run folders, coded errors."""
