"""A demosaicing network on integers: what compensation is worth, in decibels and in a picture."""
