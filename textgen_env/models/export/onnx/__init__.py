"""Export of this project's students to ONNX: the graphs, how they are written, and decoding."""
