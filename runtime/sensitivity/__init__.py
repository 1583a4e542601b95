"""How much quantizing each layer costs, in the units of a loss or of the outputs' error."""
