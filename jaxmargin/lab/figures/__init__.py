"""Figures that more than one study draws, and how they look."""
