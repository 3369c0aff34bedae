"""All of the sequence network that needs torch: the network, its fit, its export."""
