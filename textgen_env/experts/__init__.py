"""Experts: oracles that answer, at any state, which token comes next."""
