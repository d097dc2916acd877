"""Ray: plan over the nodes of a cluster, start bound actors, and verify them."""
