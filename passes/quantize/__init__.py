"""Float to quantized: where Q/DQ pairs go, and with which scales."""
