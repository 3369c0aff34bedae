"""What `feast materialize` does at the size of millions of rows: the same bytes as Feast's own path, by columns."""
