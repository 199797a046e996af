"""Commands that use one trained model: generation and export."""
