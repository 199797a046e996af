"""Recipes: named experiments and the commands that run several of them."""
