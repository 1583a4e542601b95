"""Programs that run where a framework is installed: standard library, numpy, that framework."""
