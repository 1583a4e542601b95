"""PP-OCR: a classifier of the direction of text lines, compiled on rendered text."""
