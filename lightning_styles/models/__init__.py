"""Networks, and the adapters that are trained inside frozen ones."""
