"""What each target of the fold is made of, and how lowerings are written down for it."""
