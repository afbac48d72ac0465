"""Recipes that generate speech, train the demo models and write them in the engines' formats."""
