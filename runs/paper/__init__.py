"""Table 1 and Figures 2 and 4 to 7 of Wu and Yu (2019)."""
