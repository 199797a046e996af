"""Benchmarks beside other libraries: TRL, transformers and CTranslate2."""
