"""magika: a classifier of 214 file types, compiled on the files of this machine."""
