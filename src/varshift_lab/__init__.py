"""Networks, data and experiments around varshift."""
