"""ONNX Runtime without torch: sessions, graphs, batches, top-k."""
