"""Where the samples of a batch lie in every tensor, and what holds their number as a constant."""
