"""Generation: greedy decoding, sampling and beam search over any sequence model."""
